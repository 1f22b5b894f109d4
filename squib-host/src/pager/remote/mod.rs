//! Pages over a Unix socket: the server, the client, and the protocol between them (`docs/page-server.md`).

mod client;
mod images;
mod line;
mod link;
mod plan;
mod protocol;
mod server;
mod socket;
mod sums;

pub use client::{RemoteConfig, RemoteSource};
pub use images::Images;
pub use server::{Log, PageServer, Stop};
