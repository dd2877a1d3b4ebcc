//! The rules of the house, checked over the source: floors look only down, files are short and say what they are for.
//!
//! The checker reads a tree; its own test shows it a tree that breaks every rule.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::path::PathBuf;

const LINES: usize = 500;
/// Names that say nothing.
const EMPTY_WORDS: [&str; 4] = ["util", "helper", "common", "manager"];
/// Where Rust source of ours lies.
const TREES: [&str; 4] = ["src", "e2e", "fuzz", "proto"];

#[test]
fn every_file_keeps_the_rules_of_the_house() {
    let files = read(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(files.len() > 30, "only {} files were found", files.len());
    let violations = check(&files);
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn every_claim_about_security_names_tests_that_are_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = |name| fs::read_to_string(root.join(name)).expect("the page is there");
    let (security, readme) = (page("SECURITY.md"), page("README.md"));
    let source: String = read(root).into_values().collect();
    let words = |page| str::split(page, '`').skip(1).step_by(2);
    let named = words(&security).chain(words(&readme).filter(|word| !word.starts_with("coffer_")));
    let named = named.filter(|word| word.matches('_').count() > 3);
    let missing: Vec<&str> = named.clone().filter(|name| !is_test(&source, name)).collect();
    assert!(named.count() > 40 && missing.is_empty(), "no test is called\n{}", missing.join("\n"));
}

/// Whether a test has this name, or a scenario of the rig's cluster.
fn is_test(source: &str, name: &str) -> bool {
    source.contains(&format!("fn {name}(")) || source.contains(&format!("name: \"{name}\""))
}

#[test]
fn a_tree_that_breaks_the_rules_is_caught() {
    let long = format!("//! Long.\n{}", "\n".repeat(LINES));
    let files: BTreeMap<PathBuf, String> = [
        ("src/lib.rs", "//! Map.\npub mod grpc;\n#[cfg(feature = \"dev\")]\npub mod key;\npub mod volume;\n"),
        ("src/volume.rs", "//! Words.\nuse crate::key::KeySource;\n"),
        ("src/key/kbs.rs", "//! Key.\nfn f() { crate::grpc::serve() }\n"),
        ("src/grpc.rs", "//! Door.\nuse crate::{key, volume};\n"),
        ("src/grpc/node.rs", "use super::Door;\n"),
        ("src/grpc/string_utils.rs", "//! Strings.\n"),
        ("src/stray.rs", "//! In no floor.\n"),
        ("src/grpc/long.rs", &long),
        (
            "src/grpc/good.rs",
            "//! Good: crate::grpc::x in a comment is no use.\nuse crate::volume::VolumeId;\nuse crate::grpc::own;\n",
        ),
    ]
    .into_iter()
    .map(|(path, text)| (path.into(), text.to_owned()))
    .collect();
    let violations = check(&files);
    let expected = [
        "src/grpc/long.rs: has 501 lines, at most 500",
        "src/grpc/node.rs: does not begin with `//!`",
        "src/grpc/string_utils.rs: the name says nothing",
        "src/grpc.rs: groups paths of the crate; one `use` for each",
        "src/key/kbs.rs: looks up to `grpc`",
        "src/stray.rs: is on no floor of src/lib.rs",
        "src/volume.rs: looks up to `key`",
    ];
    assert_eq!(violations, expected);
}

/// Every Rust file below [`TREES`], by its path in the repository.
fn read(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut files = BTreeMap::new();
    let mut directories: Vec<PathBuf> = TREES.iter().map(|tree| root.join(tree)).collect();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("the tree is readable") {
            let path = entry.expect("the tree is readable").path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is UTF-8");
                files.insert(path.strip_prefix(root).expect("below the root").to_owned(), text);
            }
        }
    }
    files
}

fn check(files: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let floors = floors(&files[Path::new("src/lib.rs")]);
    let mut violations = Vec::new();
    for (path, text) in files {
        let mut found = Vec::new();
        if !text.starts_with("//!") {
            found.push("does not begin with `//!`".to_owned());
        }
        let lines = text.lines().count();
        if lines > LINES {
            found.push(format!("has {lines} lines, at most {LINES}"));
        }
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.split('_').any(|word| EMPTY_WORDS.contains(&word.trim_end_matches('s'))) {
            found.push("the name says nothing".to_owned());
        }
        found.extend(looks(path, text, &floors));
        violations.extend(found.into_iter().map(|violation| format!("{}: {violation}", path.display())));
    }
    violations
}

/// The floors from top to bottom: the order of the `pub mod` lines.
fn floors(map: &str) -> Vec<&str> {
    map.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect()
}

/// Where the file `path` looks that it may not.
fn looks(path: &Path, text: &str, floors: &[&str]) -> Vec<String> {
    let Ok(inside) = path.strip_prefix("src") else { return Vec::new() };
    if inside == Path::new("lib.rs") || inside == Path::new("main.rs") || inside.starts_with("main") {
        return Vec::new();
    }
    let room =
        inside.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned()).unwrap_or_default();
    let Some(own) = floors.iter().position(|floor| *floor == room.trim_end_matches(".rs")) else {
        return vec!["is on no floor of src/lib.rs".to_owned()];
    };
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    if code.contains("crate::{") {
        found.push("groups paths of the crate; one `use` for each".to_owned());
    }
    let is_used = |floor: &&&str| {
        code.match_indices(&format!("crate::{floor}")).any(|(at, used)| {
            let next = code[at + used.len()..].chars().next();
            !next.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
        })
    };
    found.extend(floors[..own].iter().filter(is_used).map(|floor| format!("looks up to `{floor}`")));
    found
}
