//! The size of a volume: the bytes that the claim gets, exactly. Headers come on top and are the pool's business.

use super::proto::csi::CapacityRange;
use crate::volume::Content;
use crate::volume::DATA_OFFSET_BYTES;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::SECTOR_BYTES;

/// Size of a volume whose request names none.
const DEFAULT_BYTES: u64 = 1 << 30;
/// The largest payload whose backing still has a size in `off_t`.
const MAXIMUM_BYTES: u64 = (i64::MAX as u64 - DATA_OFFSET_BYTES) / SECTOR_BYTES * SECTOR_BYTES;

const FIELD: &str = "capacity_range";

/// A checked `CapacityRange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    required_bytes: u64,
    /// `u64::MAX` if there is none.
    limit_bytes: u64,
}

impl Size {
    /// Checks the form of `range`.
    pub(super) fn parse(range: Option<&CapacityRange>) -> Result<Self> {
        let range = range.copied().unwrap_or_default();
        let bytes = |name: &str, value: i64| {
            u64::try_from(value).map_err(|_| Error::invalid(&format!("{FIELD}.{name}"), "must not be negative"))
        };
        let required_bytes = bytes("required_bytes", range.required_bytes)?;
        let limit_bytes = match bytes("limit_bytes", range.limit_bytes)? {
            0 => u64::MAX,
            limit => limit,
        };
        if limit_bytes < required_bytes {
            return Err(Error::invalid(
                FIELD,
                format!("limit {limit_bytes} is below the required {required_bytes} bytes"),
            ));
        }
        Ok(Self { required_bytes, limit_bytes })
    }

    /// Whether a volume of `payload_bytes` is what was asked for.
    pub(super) fn admits(self, payload_bytes: u64) -> bool {
        (self.required_bytes..=self.limit_bytes).contains(&payload_bytes)
    }

    /// The size of a new volume: whole sectors, at least what is required, the default if nothing is.
    pub(super) fn choose(self, content: Content) -> Result<u64> {
        let out_of_range = |text: String| Err(Error::new(Reason::SizeOutOfRange, text));
        let whole_limit = self.limit_bytes / SECTOR_BYTES * SECTOR_BYTES;
        let payload_bytes = match self.required_bytes {
            0 => DEFAULT_BYTES.min(whole_limit),
            required if required > MAXIMUM_BYTES => {
                return out_of_range(format!("{required} bytes are more than any volume can have ({MAXIMUM_BYTES})"));
            }
            required => required.next_multiple_of(SECTOR_BYTES),
        };
        if payload_bytes > whole_limit {
            return out_of_range(format!(
                "no multiple of {SECTOR_BYTES} lies between the required {} and the limit {} bytes",
                self.required_bytes, self.limit_bytes
            ));
        }
        let minimum = content.minimum_bytes();
        if payload_bytes < minimum {
            return out_of_range(format!("{payload_bytes} bytes are too few for {content}: the least is {minimum}"));
        }
        Ok(payload_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::FsType;

    const EXT4: Content = Content::Filesystem(FsType::Ext4);

    fn choose(required_bytes: i64, limit_bytes: i64) -> Result<u64, Reason> {
        Size::parse(Some(&CapacityRange { required_bytes, limit_bytes }))
            .and_then(|size| size.choose(EXT4))
            .map_err(|error| error.reason())
    }

    #[test]
    fn sizes_follow_the_rules() {
        let mib = 1 << 20;
        for (required, limit, expected) in [
            (0, 0, Ok(1 << 30)),
            (0, 100 * mib, Ok(100 << 20)),
            (0, 100 * mib + 1, Ok(100 << 20)),
            (0, mib, Err(Reason::SizeOutOfRange)),
            (16 * mib, 0, Ok(16 << 20)),
            (16 * mib - 4096, 0, Err(Reason::SizeOutOfRange)),
            (16 * mib + 1, 0, Ok((16 << 20) + 4096)),
            (16 * mib + 1, 16 * mib + 4096, Ok((16 << 20) + 4096)),
            (16 * mib + 1, 16 * mib + 4095, Err(Reason::SizeOutOfRange)),
            (-1, 0, Err(Reason::InvalidArgument)),
            (0, -1, Err(Reason::InvalidArgument)),
            (2 * mib, mib, Err(Reason::InvalidArgument)),
            (i64::MAX, 0, Err(Reason::SizeOutOfRange)),
            (i64::MAX, i64::MAX, Err(Reason::SizeOutOfRange)),
            (i64::MAX - 4096 - (2 << 20), 0, Ok(MAXIMUM_BYTES)),
        ] {
            assert_eq!(choose(required, limit), expected, "required {required}, limit {limit}");
        }
        assert_eq!(Size::parse(None).expect("unset").choose(EXT4).ok(), Some(DEFAULT_BYTES));
    }

    #[test]
    fn an_existing_volume_is_held_against_the_range() {
        let size = Size::parse(Some(&CapacityRange { required_bytes: 10, limit_bytes: 20 })).expect("valid");
        assert_eq!([9, 10, 20, 21].map(|bytes| size.admits(bytes)), [false, true, true, false]);
    }
}
