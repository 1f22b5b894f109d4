//! Serves a snapshot's memory over a Unix socket, and reads a page back as a restored machine does:
//!
//! ```text
//! cargo run -p squib-examples --example page_server -- vm pages.sock
//! squib restore --state vm.state --backend uffd --backend-path pages.sock
//! ```
//!
//! serves `vm.mem` of the pair `vm.state` and `vm.mem` until it is killed.

use std::error::Error;
use std::thread;

use squib_host::pager::{Images, PageServer, PageSource, RemoteConfig, RemoteSource};
use squib_snapshot::{Chain, ChainStates};

const NO_DIFFS: &[(&str, &str)] = &[];

fn main() -> Result<(), Box<dyn Error>> {
    let [_, name, socket] = &std::env::args().collect::<Vec<_>>()[..] else {
        return Err("usage: page_server NAME SOCKET".into());
    };
    let (state, memory) = (format!("{name}.state"), format!("{name}.mem"));
    let chain = Chain::open((&state, &memory), NO_DIFFS)?;
    let server = PageServer::bind(Images::chain(&chain)?, socket)?.log_to(Box::new(|line| println!("{line}")));
    let serving = thread::spawn(move || server.serve(false));

    // The client needs the state only: its checksums tell right bytes from wrong ones.
    let states = ChainStates::open(state.as_ref(), &[] as &[&str])?;
    let source = RemoteSource::connect(RemoteConfig::new(socket), states)?;
    let mut page = vec![0; 16 << 10];
    let origin = source.read(0, &mut page)?;
    println!("the first page of {} bytes of RAM begins with {:02x?} ({origin:?})", source.size(), &page[..8]);

    serving.join().map_err(|_| "the server panicked")??;
    Ok(())
}
