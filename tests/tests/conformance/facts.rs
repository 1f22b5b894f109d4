//! The suite and the list of facts say the same.

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
