#!/bin/bash
# The kubelet ends when containerd does not answer; waiting for the socket saves a start.
until [ -S /run/containerd/containerd.sock ]; do sleep 0.5; done
exec kubelet --config=/share/node/kubelet.yaml --kubeconfig=/share/node/kubelet.kubeconfig \
    --hostname-override="$(hostname)" --node-ip=10.0.2.15 --housekeeping-interval=60s
