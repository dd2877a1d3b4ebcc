#!/bin/bash
# Through it pods reach the API server under the address of its Service.
exec kube-proxy --kubeconfig=/share/node/kube-proxy.kubeconfig --hostname-override="$coffer_node" \
    --proxy-mode=iptables --cluster-cidr=10.88.0.0/16
