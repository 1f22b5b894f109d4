//! The suite and the list of facts say the same.

use std::path::Path;
use std::process::Command;

use squib_tests::facts::{self, Checked, FACTS};

#[test]
fn every_fact_has_its_tests_and_every_name_its_fact() {
    let list = Command::new(std::env::current_exe().unwrap()).arg("--list").output().unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let tests: Vec<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    for fact in FACTS {
        let tested = tests.iter().any(|name| facts::of_test(name).iter().any(|of| of.id == fact.id));
        assert_eq!(tested, matches!(fact.checked, Checked::Suite), "{}: {}", fact.label(), fact.text);
    }
    for name in tests {
        let short = name.rsplit("::").next().unwrap().as_bytes();
        let named = short[0] == b'a' && short[1].is_ascii_digit();
        assert_eq!(named, !facts::of_test(name).is_empty(), "{name}");
    }
}

/// What is named as the place where a fact is checked is there.
#[test]
fn what_is_checked_elsewhere_is_checked_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for fact in FACTS {
        let Checked::Elsewhere(places) = fact.checked else { continue };
        for place in places.split("; ").filter(|place| place.contains('/')) {
            let (file, test) = place.split_once(": ").unwrap_or((place, ""));
            let text = std::fs::read_to_string(root.join(file));
            let text = text.unwrap_or_else(|error| panic!("{}: {file}: {error}", fact.label()));
            assert!(text.contains(test), "{}: {file} has no {test}", fact.label());
            assert!(test.is_empty() || text.contains(&format!("fn {test}(")), "{}: {test} is no test", fact.label());
        }
    }
}
