//! Nothing foreign is missing in `headers.rs`: not what Mac-only code names of libc and mach2 or declares itself, and not what code that both
//! kernels run names of either.

use std::collections::BTreeSet;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

use super::{search, sources};

const CRATES: [&str; 2] = ["libc", "mach2"];

/// A file's tokens, groups opened, each with its line.
struct Tokens(Vec<(String, usize)>);

impl Tokens {
    fn read(path: &Path) -> Tokens {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let stream: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut tokens = Tokens(Vec::new());
        tokens.flatten(stream);
        tokens
    }

    fn flatten(&mut self, stream: TokenStream) {
        for tree in stream {
            if let TokenTree::Group(group) = tree {
                let brace = group.delimiter() == proc_macro2::Delimiter::Brace;
                self.0.push((if brace { "{" } else { "(" }.to_owned(), group.span_open().start().line));
                self.flatten(group.stream());
                self.0.push((if brace { "}" } else { ")" }.to_owned(), group.span_close().start().line));
            } else {
                self.0.push((tree.to_string(), tree.span().start().line));
            }
        }
    }

    fn at(&self, index: usize) -> &str {
        self.0.get(index).map_or("", |(text, _)| text)
    }

    /// Every word there is.
    fn words(&self) -> BTreeSet<String> {
        self.0.iter().map(|(text, _)| text.clone()).collect()
    }

    /// What follows `word` directly, each time it is there.
    fn behind(&self, word: &str) -> impl Iterator<Item = String> {
        (1..self.0.len()).filter(move |&index| self.at(index - 1) == word).map(|index| self.at(index).to_owned())
    }

    /// Where the group that is opened at `open` is closed.
    fn close(&self, open: usize) -> usize {
        let mut depth = 0;
        for index in open..self.0.len() {
            match self.at(index) {
                "{" | "(" => depth += 1,
                "}" | ")" => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return index;
            }
        }
        self.0.len()
    }

    /// The ends of paths into the foreign crates, and functions declared in `extern "C"` blocks, on these lines.
    fn foreign(&self, lines: std::ops::RangeInclusive<usize>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (index, (text, line)) in self.0.iter().enumerate().filter(|(_, (_, line))| lines.contains(line)) {
            if text == "extern" && self.at(index + 1) == "\"C\"" && self.at(index + 2) == "{" {
                let block = Tokens(self.0[index + 2..self.close(index + 2)].to_vec());
                names.extend(block.behind("fn"));
            }
            if !CRATES.contains(&text.as_str()) || self.at(index + 1) != ":" {
                continue;
            }
            let mut end = index;
            while self.at(end + 1) == ":" && self.at(end + 2) == ":" {
                end += 3;
            }
            match self.at(end) {
                // All of a module: what is used of it is seen where it is used.
                "*" => {}
                "{" => {
                    names.extend((end + 1..self.close(end)).map(|at| self.at(at).to_owned()).filter(|word| word != ","))
                }
                name => {
                    assert!(end > index, "line {line}: {text}");
                    names.insert(name.to_owned());
                }
            }
        }
        names
    }
}

fn assert_there(names: &BTreeSet<String>, what: &str) {
    let there = Tokens::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/macos_only/headers.rs")).words();
    let missing: Vec<&String> = names.difference(&there).collect();
    assert!(missing.is_empty(), "{what}: not in headers.rs, so not compared with Apple's headers: {missing:?}");
}

#[test]
fn everything_foreign_in_mac_only_code_is_compared_with_the_headers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut names = BTreeSet::new();
    for stretch in search(root).iter().filter(|stretch| !stretch.file.ends_with("macos_only/headers.rs")) {
        names.extend(Tokens::read(&stretch.file).foreign(stretch.first..=stretch.last));
    }
    // The search is no good if it does not find what is known to be there.
    for known in ["mach_vm_remap", "QOS_CLASS_UTILITY", "thread_get_exception_ports", "VM_FLAGS_OVERWRITE", "shm_open"]
    {
        assert!(names.contains(known), "{known} is not among {names:?}");
    }
    assert_there(&names, "Mac-only code");
}

#[test]
fn everything_that_both_kernels_have_is_compared_with_the_headers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let types = Tokens::read(&root.join("squib-sim/src/mach/types.rs"));
    let constant = |word: &String| {
        word.len() > 3 && word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let constants: BTreeSet<String> = types.words().into_iter().filter(constant).collect();
    assert!(constants.contains("MACH_RCV_PORT_DIED") && constants.len() > 60, "{constants:?}");
    assert_there(&constants, "the stand-in's constants");

    let offered = Tokens::read(&root.join("squib-sim/src/mach/mod.rs")).words();
    let functions =
        offered.into_iter().filter(|word| ["mach_", "thread_", "task_"].iter().any(|start| word.starts_with(start)));
    let mut files = Vec::new();
    sources(&root.join("squib-host/src/pager/mach"), &mut files);
    let used: BTreeSet<String> = files.iter().flat_map(|file| Tokens::read(file).words()).collect();
    let functions: BTreeSet<String> = functions.filter(|function| used.contains(function)).collect();
    assert!(functions.contains("mach_msg") && functions.len() > 10, "{functions:?}");
    assert_there(&functions, "functions of both kernels");
}
