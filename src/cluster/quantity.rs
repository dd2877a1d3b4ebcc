//! Numbers of bytes as Kubernetes writes them.

use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use schemars::Schema;
use schemars::SchemaGenerator;
use schemars::json_schema;
use serde::Deserialize;
use serde::Serialize;

/// The binary suffixes, largest first, with the powers of two that they stand for.
const SUFFIXES: [(&str, u32); 5] = [("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
/// What a reader outside may find.
const PATTERN: &str = "^(0|[1-9][0-9]*)(Ki|Mi|Gi|Ti|Pi)?$";

/// Bytes, in the canonical form of Kubernetes' binary quantities: `10Gi`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Quantity(pub u64);

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, power): &&(&str, u32)| self.0 > 0 && self.0.trailing_zeros() >= *power;
        match SUFFIXES.iter().find(fits) {
            Some((suffix, power)) => write!(f, "{}{suffix}", self.0 >> power),
            None => self.0.fmt(f),
        }
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.to_string()
    }
}

impl TryFrom<String> for Quantity {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (digits, power) = SUFFIXES
            .iter()
            .find_map(|(suffix, power)| Some((text.strip_suffix(suffix)?, *power)))
            .unwrap_or((text.as_str(), 0));
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let bytes = digits.parse::<u64>().ok().filter(|_| is_number).and_then(|count| count.checked_mul(1 << power));
        bytes.map(Self).ok_or_else(|| format!("{text:?} is not a number of bytes such as 10Gi"))
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_canonical_and_read_back() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1536, "1536"),
            (4096, "4Ki"),
            (128 << 20, "128Mi"),
            (10 << 30, "10Gi"),
            (1536 << 20, "1536Mi"),
            (u64::MAX, "18446744073709551615"),
        ] {
            assert_eq!(Quantity(bytes).to_string(), text);
            assert_eq!(Quantity::try_from(text.to_owned()), Ok(Quantity(bytes)));
        }
        for text in ["", "Gi", "1.5Gi", "-1", "+1", "1G", "1gi", "99999999999Pi", "1 Ki"] {
            assert!(Quantity::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
