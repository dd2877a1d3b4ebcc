# What a Trustee KBS releases to the nodes of Coffer: the resource policy of the KBS, of which there is one for all. Its
# input is the attestation token (EAR) of whoever asks, its data what is asked for. Released is only
#   - a resource, of a repository that is listed here,
#   - to a machine whose every part the attestation service has affirmed,
#   - and that is a confidential machine (TDX, SEV-SNP), or has a TPM whose key is listed here with what it booted.
# Evidence of any other kind, `sample` before all, gets nothing.
package policy

import rego.v1

default allow := false

# The first segment of the key URIs of Coffer's StorageClasses.
repositories := {"default"}

allow if {
	data.plugin == "resource"
	count(data["resource-path"]) == 3
	data["resource-path"][0] in repositories
	is_object(input.submods)
	count(input.submods) > 0
	every submod in input.submods {
		submod["ear.status"] == "affirming"
		is_known(submod["ear.veraison.annotated-evidence"])
	}
}

# What of the evidence is not about a kind of platform.
about_the_exchange := {"init_data", "init_data_claims", "report_data", "runtime_data_claims"}

platforms(evidence) := object.keys(evidence) - about_the_exchange

is_known(evidence) if platforms(evidence) in {{"tdx"}, {"snp"}}

is_known(evidence) if {
	platforms(evidence) == {"tpm"}
	some node in tpm_nodes
	node.attestationKey == evidence.tpm.ak_public
	count(node.pcrs) > 0
	every number, value in node.pcrs {
		evidence.tpm[sprintf("pcr%02d", [to_number(number)])] == value
	}
}

# By the name of the node, what `coffer attest --output json` printed on it, without the PCRs that may change.
tpm_nodes := {}
