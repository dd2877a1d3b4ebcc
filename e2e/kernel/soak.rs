//! Which part of a soak this run is. Without one, the tests here take the sample that `make test` has time for.

use std::fmt::Display;

use coffer::volume::Profile;

use crate::driver::Kind;

/// What a volume is.
pub(crate) type Variant = (Profile, Kind);

/// Every kind of volume in every profile.
pub(crate) fn variants() -> Vec<Variant> {
    let kinds = |profile| [Kind::Ext4, Kind::Xfs, Kind::Block].map(|kind| (profile, kind));
    Profile::ALL.into_iter().flat_map(kinds).collect()
}

/// One of several parts of equal size, which are everything together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which, from 0.
    pub(crate) number: usize,
    /// Of how many.
    pub(crate) of: usize,
}

impl Part {
    /// Everything.
    pub(crate) const WHOLE: Self = Self { number: 0, of: 1 };

    /// What `COFFER_PART` says: `3/12` is the third part of twelve.
    pub(crate) fn of_environment() -> Option<Self> {
        let text = std::env::var("COFFER_PART").ok()?;
        let (number, of) = text.split_once('/').expect("COFFER_PART is a number of a number");
        let number: usize = number.parse().expect("a number");
        Some(Self { number: number - 1, of: of.parse().expect("a number") })
    }

    /// Deals the parts out to `subjects`: the subject of this one, and which part of that subject it is.
    pub(crate) fn deal<T: Copy>(self, subjects: &[T]) -> (T, Self) {
        let (count, subject) = (subjects.len(), self.number % subjects.len());
        assert!(self.of >= count, "{} parts are too few for {count} subjects", self.of);
        (subjects[subject], Self { number: self.number / count, of: (self.of - subject).div_ceil(count) })
    }

    /// What of `all` belongs to this part.
    pub(crate) fn take<T>(self, all: impl IntoIterator<Item = T>) -> impl Iterator<Item = T> {
        all.into_iter().skip(self.number).step_by(self.of)
    }
}

/// Says how much of something there was; the host adds it up over all parts.
pub(crate) fn figure(what: impl Display, value: usize) {
    println!("figure: {what}: {value}");
}

#[test]
fn the_parts_are_everything_and_nothing_twice() {
    let subjects = ['a', 'b', 'c'];
    let mut dealt: Vec<_> = (0..8)
        .flat_map(|number| {
            let (subject, part) = Part { number, of: 8 }.deal(&subjects);
            part.take(0..10).map(move |item| (subject, item)).collect::<Vec<_>>()
        })
        .collect();
    dealt.sort_unstable();
    let all: Vec<_> = subjects.into_iter().flat_map(|subject| (0..10).map(move |item| (subject, item))).collect();
    assert_eq!(dealt, all);
}
