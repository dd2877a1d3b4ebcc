#!/bin/bash
# The kubelet ends when containerd does not answer; waiting for the socket saves a start.
until [ -S /run/containerd/containerd.sock ]; do sleep 0.5; done
exec kubelet --config=/share/node/kubelet.yaml --kubeconfig="/share/node/$coffer_node.kubeconfig" \
    --hostname-override="$coffer_node" --node-ip="$coffer_address" \
    --housekeeping-interval=60s
