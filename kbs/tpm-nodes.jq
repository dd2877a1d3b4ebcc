# The nodes with a TPM for resource-policy.rego: jq -n -f tpm-nodes.jq nodes/*.json, one file of `coffer attest` a node.
# PCRs 0 to 7 are the firmware's, 11 is that of a unified kernel image: kernel, initial RAM disk and command line.
reduce (inputs | select(.tee == "tpm")) as $node ({};
  .[input_filename | sub(".*/"; "") | rtrimstr(".json")] =
    ($node | .pcrs |= with_entries(select(.key | tonumber | . <= 7 or . == 11))))
