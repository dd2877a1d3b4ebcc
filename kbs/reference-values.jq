# What the attestation policy that Trustee comes with compares: jq -s -f reference-values.jq nodes/*.json, one file of
# `coffer attest` a node. Platforms that no node has are left out, so nothing about them is ever affirmed.
def of(tee; value): [.[] | select(.tee == tee) | value] | unique;
{
  trusted_aks: of("tpm"; .attestationKey),
  tpm_pcr11: of("tpm"; .pcrs["11"]),
  mr_td: of("tdx"; .claims.mr_td),
  rtmr_1: of("tdx"; .claims.rtmr_1),
  rtmr_2: of("tdx"; .claims.rtmr_2),
  xfam: of("tdx"; .claims.xfam),
  snp_launch_measurement: of("snp"; .claims.measurement),
  snp_bootloader: of("snp"; .claims.reported_tcb.bootloader),
  snp_microcode: of("snp"; .claims.reported_tcb.microcode),
  snp_snp_svn: of("snp"; .claims.reported_tcb.snp),
  snp_tee_svn: of("snp"; .claims.reported_tcb.tee)
} | with_entries(select(.value != []))
