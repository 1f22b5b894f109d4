//! Tells the tests which C compiler makes programs for a Mac, in the words of the crate `cc`: `CC_aarch64_apple_darwin`, or `cc` on a Mac
//! itself. `tests/macho` finds it in cargo's messages.

fn main() {
    println!("cargo::rerun-if-env-changed=CC_aarch64_apple_darwin");
    if std::env::var("TARGET").is_ok_and(|target| target == "aarch64-apple-darwin") {
        let named = std::env::var("CC_aarch64_apple_darwin");
        let native = std::env::var("HOST").is_ok_and(|host| host.ends_with("-apple-darwin"));
        if let Some(compiler) = named.ok().or(native.then(|| "cc".into())) {
            println!("cargo::rustc-env=SQUIB_APPLE_CC={compiler}");
        }
    }
}
