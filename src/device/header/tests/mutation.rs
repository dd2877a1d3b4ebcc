//! One small change to a sealed header, anywhere: it is refused, or the header still means the same.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::*;

/// What may happen to one place of a JSON document.
#[derive(Clone, Debug)]
enum Change {
    Remove,
    Replace(Value),
    /// The place occurs once more, under this name.
    Repeat(&'static str),
    /// The place gets a member or an element.
    Add(Value),
    /// A text loses its last letter, or a number becomes the next.
    Nudge,
}

fn change() -> impl Strategy<Value = Change> {
    let values =
        [json!(0), json!(1), json!("0"), json!("1"), json!(""), json!([]), json!({}), json!("cipher_null-ecb")];
    let values = select(values.to_vec());
    prop_oneof![
        Just(Change::Remove),
        values.clone().prop_map(Change::Replace),
        select(vec!["0", "1", "2", "flags", "requirements", "zzz"]).prop_map(Change::Repeat),
        values.prop_map(Change::Add),
        Just(Change::Nudge),
    ]
}

/// Every place of `value` below `at`, as a JSON pointer.
fn places(at: &str, value: &Value) -> Vec<String> {
    let below: Vec<_> = match value {
        Value::Object(members) => members.iter().map(|(name, member)| (name.clone(), member)).collect(),
        Value::Array(elements) => elements.iter().enumerate().map(|(at, element)| (at.to_string(), element)).collect(),
        _ => Vec::new(),
    };
    let below = below.into_iter().map(|(name, value)| (format!("{at}/{name}"), value));
    below.flat_map(|(at, value)| [vec![at.clone()], places(&at, value)].concat()).collect()
}

fn apply(change: &Change, at: &str, document: &mut Value) {
    let (parent, name) = at.rsplit_once('/').expect("a pointer below the root");
    let found = document.pointer(at).cloned().expect("a place of this document");
    let place = document.pointer_mut(at).expect("the same place");
    match (change, place) {
        (Change::Replace(value), place) => *place = value.clone(),
        (Change::Add(value), Value::Array(elements)) => elements.push(value.clone()),
        (Change::Add(value), Value::Object(members)) => drop(members.insert("added".to_owned(), value.clone())),
        (Change::Add(value), place) => *place = json!([value]),
        (Change::Nudge, Value::String(text)) => drop(text.pop()),
        (Change::Nudge, place) => *place = json!(place.as_u64().unwrap_or_default() + 1),
        (Change::Remove | Change::Repeat(_), _) => match (change, document.pointer_mut(parent).expect("a parent")) {
            (Change::Repeat(name), Value::Object(members)) => drop(members.insert((*name).to_owned(), found)),
            (Change::Repeat(_), Value::Array(elements)) => elements.push(found),
            (_, Value::Object(members)) => drop(members.remove(name)),
            (_, Value::Array(elements)) => drop(elements.remove(name.parse().expect("an index"))),
            _ => unreachable!("only objects and arrays have places below them"),
        },
    }
}

/// Panics unless `image` is refused or is the header that was sealed.
fn refused_or_the_same(image: &Image) {
    if let Ok(verified) = image.verify(&shape(), &key()) {
        assert_eq!(verified.digest, SEALED.1, "opened with another meaning");
        let frozen = bytes_of(&verified.frozen);
        assert_eq!(frozen.document(), sealed().document());
        assert_eq!(frozen.bytes()[KEYSLOTS.start..][..258_048], sealed().bytes()[KEYSLOTS.start..][..258_048]);
    }
}

proptest! {
    #[test]
    fn any_change_of_a_member_is_refused_or_means_the_same(at in any::<Index>(), change in change()) {
        let image = sealed().forge_json(|document| {
            let places = places("", document);
            apply(&change, &places[at.index(places.len())], document);
        });
        let is_changed = image.document() != sealed().document();
        refused_or_the_same(&image);
        prop_assert!(!is_changed || image.verify(&shape(), &key()).is_err(), "a changed document opened");
    }

    #[test]
    fn any_changed_byte_is_refused_or_means_the_same(
        at in 0..300_000usize, value in 1..=255u8, summed in any::<bool>(),
    ) {
        let mut image = sealed();
        image.bytes_mut()[at] ^= value;
        refused_or_the_same(&if summed { image.forge(|_| ()) } else { image });
    }

    #[test]
    fn any_changed_byte_of_both_binary_headers_is_refused_or_means_the_same(at in 0..4096usize, value in 1..=255u8) {
        refused_or_the_same(&sealed().forge(|copy| copy[at] ^= value));
    }
}
