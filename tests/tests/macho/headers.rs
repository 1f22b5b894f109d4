//! Apple's headers against `tests/macos_only/headers.rs`: every assertion there becomes one in C++, and the compiler that makes programs for a
//! Mac takes them all, or says which is wrong. Nothing is run.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use quote::ToTokens;
use serde_json::Value;
use syn::visit::{self, Visit};
use syn::{Expr, GenericArgument, Pat, PathArguments, ReturnType, Type};

/// What not every SDK has (a cross compiler's may not): the header, a name, and what an SDK without the header offers instead: the older
/// calls of `mach/vm_map.h` have the same arguments in a 64-bit program.
const RARE: [(&str, &str, Option<&str>); 6] = [
    ("mach/mach_vm.h", "mach_vm_region", Some("vm_region_64")),
    ("mach/mach_vm.h", "mach_vm_remap", Some("vm_remap")),
    ("os/os_sync_wait_on_address.h", "os_sync_wait_on_address", None),
    ("os/os_sync_wait_on_address.h", "os_sync_wake_by_address_all", None),
    ("os/os_sync_wait_on_address.h", "OS_SYNC_WAIT_ON_ADDRESS_NONE", None),
    ("os/os_sync_wait_on_address.h", "OS_SYNC_WAKE_BY_ADDRESS_NONE", None),
];

/// The pager's own numbers (`squib-host/src/pager/mach/message.rs`), in the words of the headers and of `headers.h`.
const MESSAGES: [(&str, &str); 11] = [
    ("NDR", "offsetof(Request, NDR)"),
    ("EXCEPTION", "offsetof(Request, exception)"),
    ("CODE_COUNT", "offsetof(Request, codeCnt)"),
    ("CODE", "offsetof(Request, code)"),
    ("STATE_COUNT", "offsetof(Request, old_stateCnt)"),
    ("REQUEST_STATE", "offsetof(Request, old_state)"),
    ("NDR", "offsetof(Reply, NDR)"),
    ("RETURN_CODE", "offsetof(Reply, RetCode)"),
    ("ERROR_REPLY", "sizeof(mig_reply_error_t)"),
    ("REPLY_STATE", "offsetof(Reply, new_state)"),
    ("TRAILER_MAX", "sizeof(mach_msg_max_trailer_t)"),
];

fn parse(path: &str) -> syn::File {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn last(path: &syn::Path) -> String {
    path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default()
}

/// A type in the words of C.
fn in_c(rust: &Type) -> String {
    match rust {
        Type::Ptr(pointer) if pointer.const_token.is_some() => format!("const {} *", in_c(&pointer.elem)),
        Type::Ptr(pointer) => format!("{} *", in_c(&pointer.elem)),
        Type::Path(path) => match last(&path.path).as_str() {
            name @ ("i32" | "i64") => format!("int{}_t", &name[1..]),
            name @ ("u32" | "u64") => format!("uint{}_t", &name[1..]),
            "usize" => "size_t".to_owned(),
            "c_char" => "char".to_owned(),
            "c_void" => "void".to_owned(),
            "Array" => "uint32_t *".to_owned(),
            "Flavors" => "int32_t *".to_owned(),
            name => name.to_owned(),
        },
        other => panic!("no words in C for {}", other.to_token_stream()),
    }
}

/// What is asserted, in the order of the file: the name it is about, and the assertion in C++.
#[derive(Default)]
struct Assertions(Vec<(String, String)>);

impl Assertions {
    /// The name and the words in C of one side of an equation.
    fn side(expression: &Expr) -> (String, String) {
        match expression {
            Expr::Cast(cast) => Self::side(&cast.expr),
            Expr::Path(path) => (last(&path.path), last(&path.path)),
            // size_of::<T>()
            Expr::Call(call) => {
                let Expr::Path(path) = &*call.func else { panic!("a call of what?") };
                let Some(PathArguments::AngleBracketed(of)) = path.path.segments.last().map(|last| &last.arguments)
                else {
                    panic!("size of what?")
                };
                let Some(GenericArgument::Type(of)) = of.args.first() else { panic!("size of what?") };
                (in_c(of), format!("sizeof({})", in_c(of)))
            }
            Expr::Macro(offset) if last(&offset.mac.path) == "offset_of" => {
                let place = offset.mac.tokens.to_string();
                (place.clone(), format!("offsetof({place})"))
            }
            other => panic!("no words in C for {}", other.to_token_stream()),
        }
    }
}

impl<'ast> Visit<'ast> for Assertions {
    /// `assert!(NAME == VALUE)`
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        if !call.path.is_ident("assert") {
            return;
        }
        let Expr::Binary(equation) = call.parse_body::<Expr>().expect("an equation") else { panic!("an equation") };
        let (name, words) = Self::side(&equation.left);
        let value = equation.right.to_token_stream().to_string().replace('_', "");
        self.0.push((name.clone(), format!("static_assert({words} == {value}, \"{name} is otherwise\");")));
    }

    /// `let _: unsafe extern "C" fn(ARGUMENTS) -> RESULT = NAME;`, and without `extern "C"` what is a macro in C.
    fn visit_local(&mut self, local: &'ast syn::Local) {
        let (Pat::Type(typed), Some(init)) = (&local.pat, &local.init) else { return visit::visit_local(self, local) };
        let (Type::BareFn(function), Expr::Path(path)) = (&*typed.ty, &*init.expr) else { panic!("a function") };
        let result = match &function.output {
            ReturnType::Default => "void".to_owned(),
            ReturnType::Type(_, of) => in_c(of),
        };
        let mut arguments: Vec<String> = function.inputs.iter().map(|argument| in_c(&argument.ty)).collect();
        arguments.extend(function.variadic.is_some().then(|| "...".to_owned()));
        let name = last(&path.path);
        let assertion = if function.abi.is_some() {
            format!("FUNCTION({name}, {result}({}));", arguments.join(", "))
        } else {
            format!("static_assert(alike<decltype({name}()), {result}>::value(), \"{name} is declared otherwise\");")
        };
        self.0.push((name, assertion));
    }
}

/// All of it as one C++ file.
fn program() -> (String, usize) {
    let mut found = Assertions::default();
    found.visit_file(&parse("tests/macos_only/headers.rs"));
    let mut text = include_str!("headers.h").to_owned();
    for (name, assertion) in &found.0 {
        let Some((header, _, instead)) = RARE.iter().find(|(_, rare, _)| rare == name) else {
            let _ = writeln!(text, "{assertion}");
            continue;
        };
        let without = match instead {
            Some(instead) => {
                let compared = assertion.replacen(name.as_str(), instead, 1);
                format!("{compared}\n#warning no {header}: {name} was compared with {instead}")
            }
            None => format!("#warning no {header}: {name} was NOT CHECKED"),
        };
        let _ =
            writeln!(text, "#if __has_include(<{header}>)\n#include <{header}>\n{assertion}\n#else\n{without}\n#endif");
    }
    let messages = parse("../squib-host/src/pager/mach/message.rs");
    for (name, words) in MESSAGES {
        let value = messages.items.iter().find_map(|item| match item {
            syn::Item::Const(item) if item.ident == name => Some(item.expr.to_token_stream().to_string()),
            _ => None,
        });
        let value = value.unwrap_or_else(|| panic!("message.rs has no {name}"));
        let _ = writeln!(text, "static_assert({words} == {value}, \"the pager's {name} is otherwise\");");
    }
    (text, found.0.len() + MESSAGES.len())
}

/// The compiler that `build.rs` has named to cargo.
fn compiler(messages: &str) -> String {
    let named = |message: Value| {
        let variables = message["env"].as_array()?;
        let named = variables.iter().find(|variable| variable[0] == "SQUIB_APPLE_CC")?;
        named[1].as_str().map(str::to_owned)
    };
    let mut named = messages.lines().filter_map(|line| named(serde_json::from_str(line).ok()?));
    named.next().expect("tests/build.rs names the C compiler: CC_aarch64_apple_darwin")
}

fn compile(compiler: &str, text: &str) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("headers.cpp");
    std::fs::write(&file, text).unwrap();
    let arguments = [
        "-x",
        "c++",
        "-std=c++17",
        "-fsyntax-only",
        "-ferror-limit=0",
        "-fno-diagnostics-show-option",
        "-target",
        "arm64-apple-macosx15.0",
    ];
    let output = Command::new(compiler).args(arguments).arg(&file).output();
    let output = output.unwrap_or_else(|error| panic!("{compiler}: {error}"));
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn framework_aside_apples_headers_say_what_the_code_relies_on() {
    let compiler = compiler(&super::messages("SQUIB_MACHO"));
    let (text, count) = program();
    let (good, said) = compile(&compiler, &text);
    assert!(good, "{said}");
    let warnings: Vec<&str> = said.lines().filter_map(|line| Some(line.split_once("warning: ")?.1)).collect();
    for warning in &warnings {
        println!("{warning}");
    }
    let unchecked = warnings.iter().filter(|warning| warning.contains("NOT CHECKED")).count();
    println!("{} types, sizes and values are those of Apple's headers, {unchecked} NOT CHECKED", count - unchecked);
    // Each kind of assertion finds what is wrong.
    for (right, wrong) in [
        (
            "FUNCTION(mach_port_deallocate, int32_t(uint32_t, uint32_t))",
            "FUNCTION(mach_port_deallocate, int32_t(uint32_t, uint64_t))",
        ),
        (
            "FUNCTION(mach_port_deallocate, int32_t(uint32_t, uint32_t))",
            "FUNCTION(mach_port_deallocate, int32_t(uint32_t, int32_t))",
        ),
        (
            "FUNCTION(mach_port_deallocate, int32_t(uint32_t, uint32_t))",
            "FUNCTION(mach_port_deallocate, int32_t(uint32_t))",
        ),
        ("int32_t(uint32_t, uint32_t, uint32_t *)", "int32_t(uint32_t, uint32_t, uint64_t *)"),
        (
            "FUNCTION(shm_open, int32_t(const char *, int32_t, ...))",
            "FUNCTION(shm_open, int32_t(const char *, int32_t, int32_t))",
        ),
        ("FUNCTION(shm_unlink, int32_t(const char *))", "FUNCTION(shm_unlink, int32_t(char *))"),
        ("(ARM_THREAD_STATE64 == 6", "(ARM_THREAD_STATE64 == 7"),
        ("(sizeof(mach_msg_header_t) == 24", "(sizeof(mach_msg_header_t) == 28"),
        ("offsetof(Request, old_stateCnt) == 60", "offsetof(Request, old_stateCnt) == 64"),
    ] {
        let broken = text.replacen(right, wrong, 1);
        assert_ne!(broken, text, "{right} is not there");
        assert!(!compile(&compiler, &broken).0, "not found: {wrong}");
    }
}
