//! Lists the code that only a Mac compiles, which nothing here can run, and keeps it small: `make macos-only` prints the table.
//!
//! What counts is decided by the `cfg` of each item, statement, field or module: false on Linux whatever the features and the
//! processor, and not false on Apple silicon. A file belonging to such a module counts as a whole.

mod headers;
mod named;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use proc_macro2::TokenStream;
use syn::parse::Parser;
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Meta, Token};

/// More lines of code that nobody can run than this are not to be.
const LIMIT: usize = 600;

#[derive(Clone, Copy, PartialEq)]
enum System {
    Linux,
    Mac,
}

/// The value of a `cfg` predicate; `None` where it depends on more than the system.
fn value(predicate: &Meta, system: System) -> Option<bool> {
    let operands = || -> Option<Vec<Option<bool>>> {
        let list = predicate.require_list().ok()?;
        let parsed = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated).ok()?;
        Some(parsed.iter().map(|operand| value(operand, system)).collect())
    };
    let name = predicate.path().get_ident()?.to_string();
    match name.as_str() {
        "not" => operands()?.first()?.map(|value| !value),
        "all" => {
            let operands = operands()?;
            if operands.contains(&Some(false)) {
                Some(false)
            } else {
                operands.iter().all(Option::is_some).then_some(true)
            }
        }
        "any" => {
            let operands = operands()?;
            if operands.contains(&Some(true)) {
                Some(true)
            } else {
                operands.iter().all(Option::is_some).then_some(false)
            }
        }
        "unix" => Some(true),
        "windows" => Some(false),
        "target_os" | "target_vendor" | "target_family" | "target_env" => {
            let syn::Expr::Lit(literal) = &predicate.require_name_value().ok()?.value else { return None };
            let syn::Lit::Str(text) = &literal.lit else { return None };
            let linux = ["linux", "unknown", "unix", "gnu"];
            let mac = ["macos", "apple", "unix", ""];
            Some(if system == System::Linux { linux } else { mac }.contains(&text.value().as_str()))
        }
        "target_arch" if system == System::Mac => {
            Some(quote::ToTokens::to_token_stream(predicate).to_string().contains("\"aarch64\""))
        }
        _ => None,
    }
}

fn is_mac_only(attributes: &[Attribute]) -> bool {
    let predicates = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let predicates: Vec<Meta> = predicates.filter_map(|attribute| attribute.parse_args().ok()).collect();
    predicates.iter().any(|predicate| value(predicate, System::Linux) == Some(false))
        && predicates.iter().all(|predicate| value(predicate, System::Mac) != Some(false))
}

/// The outer attributes of whatever these tokens are.
fn attributes(tokens: TokenStream) -> Vec<Attribute> {
    let parser = |input: syn::parse::ParseStream| {
        let attributes = input.call(Attribute::parse_outer)?;
        input.parse::<TokenStream>()?;
        Ok(attributes)
    };
    parser.parse2(tokens).unwrap_or_default()
}

/// A stretch of Mac-only lines.
struct Found {
    file: PathBuf,
    first: usize,
    last: usize,
}

struct Search<'a> {
    file: &'a Path,
    found: Vec<Found>,
    /// Files and directories that are Mac-only as a whole.
    modules: Vec<PathBuf>,
}

impl Search<'_> {
    /// Whether the node is Mac-only; then it is noted, and need not be looked into.
    fn note(&mut self, node: &(impl Spanned + quote::ToTokens)) -> bool {
        let found = is_mac_only(&attributes(node.to_token_stream()));
        if found {
            let (first, last) = (node.span().start().line, node.span().end().line);
            self.found.push(Found { file: self.file.to_owned(), first, last });
        }
        found
    }

    /// The file of `mod name;`, and the directory of what is below it.
    fn module(&mut self, module: &syn::ItemMod) {
        let directory = self.file.parent().unwrap_or(Path::new(""));
        let stem = self.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let base = if ["mod", "lib", "main"].contains(&stem) { directory.to_owned() } else { directory.join(stem) };
        let named = module.attrs.iter().find(|attribute| attribute.path().is_ident("path"));
        assert!(named.is_none(), "{}: this test does not know #[path]", self.file.display());
        let name = module.ident.to_string();
        self.modules.push(base.join(format!("{name}.rs")));
        self.modules.push(base.join(name));
    }
}

macro_rules! look_at {
    ($($visit:ident: $node:ty),*) => {
        impl<'ast> Visit<'ast> for Search<'_> {
            fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
                if module.content.is_none() && is_mac_only(&module.attrs) {
                    self.module(module);
                }
                visit::visit_item_mod(self, module);
            }

            fn visit_item(&mut self, item: &'ast syn::Item) {
                if let syn::Item::Mod(module) = item {
                    self.visit_item_mod(module);
                }
                if !self.note(item) {
                    visit::visit_item(self, item);
                }
            }

            $(fn $visit(&mut self, node: &'ast $node) {
                if !self.note(node) {
                    visit::$visit(self, node);
                }
            })*
        }
    };
}

look_at! {
    visit_impl_item: syn::ImplItem, visit_trait_item: syn::TraitItem, visit_foreign_item: syn::ForeignItem,
    visit_stmt: syn::Stmt, visit_arm: syn::Arm, visit_field: syn::Field, visit_variant: syn::Variant,
    visit_field_value: syn::FieldValue
}

fn sources(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, files);
        } else if name.ends_with(".rs") {
            files.push(path);
        }
    }
}

/// Every stretch of Mac-only code below `root`.
fn search(root: &Path) -> Vec<Found> {
    let mut files = Vec::new();
    sources(root, &mut files);
    files.sort();
    let (mut found, mut modules) = (Vec::new(), Vec::new());
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        if !text.contains("cfg") {
            continue;
        }
        let parsed = syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut search = Search { file, found: Vec::new(), modules: Vec::new() };
        if is_mac_only(&parsed.attrs) {
            search.modules.push(file.clone());
        } else {
            search.visit_file(&parsed);
        }
        found.extend(search.found);
        modules.extend(search.modules);
    }
    let whole = |file: &Path| modules.iter().any(|module| file.starts_with(module));
    found.retain(|stretch| !whole(&stretch.file));
    for file in files.iter().filter(|file| whole(file)) {
        let last = std::fs::read_to_string(file).unwrap().lines().count();
        found.push(Found { file: file.clone(), first: 1, last });
    }
    found.sort_by(|a, b| (&a.file, a.first).cmp(&(&b.file, b.first)));
    found
}

fn lines(found: &[Found]) -> usize {
    found.iter().map(|stretch| stretch.last - stretch.first + 1).sum()
}

#[test]
fn mac_only_code_is_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let found = search(root);
    let mut table = String::new();
    for stretch in &found {
        let file = stretch.file.strip_prefix(root).unwrap().display();
        let size = stretch.last - stretch.first + 1;
        let _ = writeln!(table, "{size:5}  {file}:{}-{}", stretch.first, stretch.last);
    }
    println!("{table}{:5}  lines that only a Mac compiles", lines(&found));
    assert!(lines(&found) < LIMIT, "\n{table}{} lines, and {LIMIT} are too many", lines(&found));
    // The search is no good if it does not find what is known to be there.
    assert!(found.iter().any(|stretch| stretch.file.ends_with("squib-host/src/hv/simd.rs")), "{table}");
}

#[test]
fn what_counts() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write(
        "lib.rs",
        "#[cfg(target_os = \"macos\")]\nmod whole;\n\
         #[cfg(all(target_arch = \"aarch64\", target_vendor = \"apple\", not(feature = \"sim\")))]\nfn three() {\n}\n\
         #[cfg(not(target_os = \"macos\"))]\nfn not() {}\n\
         #[cfg(any(target_os = \"linux\", target_os = \"macos\"))]\nfn both() {}\n\
         #[cfg(feature = \"sim\")]\nfn feature() {}\n\
         fn inside() {\n    #[cfg(not(target_os = \"linux\"))]\n    let two = 2;\n    let one = 1;\n}\n",
    );
    write("whole.rs", "mod below;\nfn a() {}\n");
    write("whole/below.rs", "fn b() {}\n");
    let found = search(directory.path());
    let found: Vec<_> = found.iter().map(|found| (found.file.file_name().unwrap(), found.first, found.last)).collect();
    let expected =
        [("lib.rs", 1, 2), ("lib.rs", 3, 5), ("lib.rs", 13, 14), ("whole/below.rs", 1, 1), ("whole.rs", 1, 2)];
    let expected = expected.map(|(file, first, last)| (Path::new(file).file_name().unwrap(), first, last));
    assert_eq!(found, expected);
}
