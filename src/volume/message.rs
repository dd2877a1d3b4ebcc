//! Texts for people, in the length that Kubernetes shows.

/// Longest message of a health entry and longest note of an Event, in bytes.
pub const MESSAGE_BYTES: usize = 1024;

/// As much of `text` as fits into [`MESSAGE_BYTES`], cut between characters.
#[must_use]
pub fn shortened(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"a".repeat(2000)).len(), MESSAGE_BYTES);
        assert_eq!(shortened(&"€".repeat(2000)).len(), MESSAGE_BYTES - 1);
    }
}
