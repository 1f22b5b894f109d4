//! Lists ways to turn the switches that a host must put up with, one a line, each as `SQUIB_SIM` takes it, for loops over tests: every
//! position alone, or with the argument `presets` those that turn many at once.

fn main() {
    let lines = match std::env::args().nth(1).as_deref() {
        None => squib_sim::Config::harmless(),
        Some("presets") => squib_sim::config::PRESETS.map(|(name, _)| name.to_owned()).into(),
        Some(other) => {
            eprintln!("positions: '{other}' is not 'presets'");
            std::process::exit(2);
        }
    };
    lines.iter().for_each(|line| println!("{line}"));
}
