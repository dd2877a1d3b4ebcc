//! Paging through volumes. The token is the id of the last volume answered, so a page is right whatever was created or
//! deleted since the one before.

use super::field;
use crate::volume::Error;
use crate::volume::Reason;
use crate::volume::Result;
use crate::volume::VolumeId;

/// Which part of the ordered volumes is asked for.
#[derive(Debug)]
pub(super) struct Page {
    after: Option<VolumeId>,
    entries: usize,
}

impl Page {
    /// Checks the two fields that every listing RPC has.
    pub(super) fn parse(max_entries: i32, starting_token: &str) -> Result<Self> {
        let entries = field::max_entries("max_entries", max_entries)?;
        let after = match starting_token {
            "" => None,
            token => Some(VolumeId::parse(token).ok_or_else(|| {
                Error::new(
                    Reason::InvalidToken,
                    "starting_token was not given out by this driver; list from the beginning",
                )
            })?),
        };
        Ok(Self { after, entries })
    }

    /// The page of `all`, which is in the order of ids, and the token of the next one; empty if this is the last.
    pub(super) fn of<T>(&self, all: Vec<T>, id: impl Fn(&T) -> &VolumeId) -> (Vec<T>, String) {
        let is_due = |item: &T| self.after.as_ref().is_none_or(|after| id(item) > after);
        let mut page: Vec<T> = all.into_iter().filter(is_due).collect();
        let is_last = page.len() <= self.entries;
        page.truncate(self.entries);
        let token = page.last().filter(|_| !is_last).map(|item| id(item).to_string());
        (page, token.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(count: usize) -> Vec<VolumeId> {
        let mut ids: Vec<_> = (0..count).map(|number| VolumeId::for_name(&number.to_string())).collect();
        ids.sort();
        ids
    }

    fn page(max_entries: i32, token: &str, all: &[VolumeId]) -> (Vec<VolumeId>, String) {
        Page::parse(max_entries, token).expect("valid").of(all.to_vec(), |id| id)
    }

    #[test]
    fn pages_cover_everything_once_and_the_last_has_no_token() {
        let all = ids(5);
        let (first, token) = page(2, "", &all);
        let (second, token) = page(2, &token, &all);
        let (third, end) = page(2, &token, &all);
        assert_eq!([first, second, third].concat(), all);
        assert_eq!(end, "");
        assert_eq!(page(0, "", &all), (all.clone(), String::new()));
        assert_eq!(page(5, "", &all), (all, String::new()));
    }

    #[test]
    fn a_page_goes_on_though_the_volume_of_its_token_is_gone() {
        let mut all = ids(4);
        let (first, token) = page(2, "", &all);
        all.retain(|id| !first.contains(id));
        assert_eq!(page(2, &token, &all), (all.clone(), String::new()));
    }

    #[test]
    fn a_token_that_is_not_ours_is_refused() {
        let error = Page::parse(0, "invalid-token").expect_err("refused");
        assert_eq!(error.reason(), Reason::InvalidToken);
    }
}
