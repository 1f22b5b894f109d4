//! Lists every position of every switch that a host must put up with, one a line, each as `SQUIB_SIM` takes it: for loops over tests.

fn main() {
    // A clock of another kind is no matter of hosts, and with these two a machine, or a restore, is refused as it must be.
    let refuse = ["clock=", "hypervisor=", "gic-state-refused="];
    for position in squib_sim::Config::alternatives() {
        if !refuse.iter().any(|key| position.starts_with(key)) {
            println!("{position}");
        }
    }
}
