//! `squib bench`: figures beside a baseline that was measured in the same run.

mod boot;
mod diff;
mod plot;
mod restore;
mod sweep;

use std::time::Duration;

use crate::error::Result;
use crate::exit::Exit;

/// Measure, beside a baseline.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Boot(boot::Args),
    Diff(diff::Args),
    Restore(restore::Args),
}

/// Runs the command.
pub fn main(args: Args) -> Result<Exit> {
    match args.what {
        What::Boot(args) => boot::main(args),
        What::Diff(args) => diff::main(args),
        What::Restore(args) => restore::main(args),
    }
}

/// The middle one.
fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        let ms = Duration::from_millis;
        assert_eq!(median(vec![ms(9), ms(1), ms(5)]), ms(5));
        assert_eq!(median(vec![ms(7)]), ms(7));
    }
}
