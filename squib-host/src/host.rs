//! What a snapshot says about the host it was taken on.

use std::ffi::CStr;

use squib_snapshot::HostRecord;

use crate::clock;

/// This host.
pub fn record() -> HostRecord {
    let (os_build, cpu) = build_and_cpu();
    HostRecord {
        os: std::env::consts::OS.into(),
        os_build,
        cpu,
        vmm: concat!("squib ", env!("CARGO_PKG_VERSION")).into(),
        counter_frequency: clock::counter_frequency(),
    }
}

/// Differences between the host a snapshot was taken on and this one that may matter but need not.
pub fn differences(saved: &HostRecord) -> Vec<String> {
    let here = record();
    let fields = [
        ("system", &saved.os, &here.os),
        ("system build", &saved.os_build, &here.os_build),
        ("processor", &saved.cpu, &here.cpu),
    ];
    let differs = fields.into_iter().filter(|(_, then, now)| then != now);
    differs.map(|(what, then, now)| format!("{what}: was {then}, is {now}")).collect()
}

#[cfg(target_os = "macos")]
fn sysctl(name: &CStr) -> String {
    let mut text = [0u8; 256];
    let mut len = text.len();
    // SAFETY: `text` is writable for `len` bytes, `name` ends in NUL, nothing is set.
    let code =
        unsafe { libc::sysctlbyname(name.as_ptr(), text.as_mut_ptr().cast(), &mut len, std::ptr::null_mut(), 0) };
    match (code, CStr::from_bytes_until_nul(&text)) {
        (0, Ok(text)) => text.to_string_lossy().into_owned(),
        _ => String::new(),
    }
}

#[cfg(target_os = "macos")]
fn build_and_cpu() -> (String, String) {
    (sysctl(c"kern.osversion"), sysctl(c"machdep.cpu.brand_string"))
}

/// The guest runs on the stand-in's processor, whatever the host's is.
#[cfg(not(target_os = "macos"))]
fn build_and_cpu() -> (String, String) {
    // SAFETY: an all-zero utsname is a valid place for uname to write to.
    let mut names: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: as above. Should it fail, the field stays empty.
    unsafe { libc::uname(&mut names) };
    // SAFETY: uname ends every field in NUL, and `names` was zeroed besides.
    let build = unsafe { CStr::from_ptr(names.release.as_ptr()) };
    (build.to_string_lossy().into_owned(), "software stand-in".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_differs_from_another_and_not_from_itself() {
        let here = record();
        assert!(!here.os_build.is_empty());
        assert_eq!(differences(&here), Vec::<String>::new());
        let other = HostRecord { os_build: "24A335".into(), ..here };
        assert_eq!(differences(&other).len(), 1);
    }
}
