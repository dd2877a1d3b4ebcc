#!/bin/bash
# Runs as a service account bound to the provisioner's cluster role.
until [ -S /var/lib/kubelet/plugins/csi.coffer.dev/csi.sock ]; do sleep 0.5; done
export NAMESPACE=coffer-system
exec csi-provisioner --csi-address=/var/lib/kubelet/plugins/csi.coffer.dev/csi.sock \
    --kubeconfig=/share/node/provisioner.kubeconfig --enable-capacity --capacity-ownerref-level=-1 \
    --strict-topology --extra-create-metadata --timeout=60s
