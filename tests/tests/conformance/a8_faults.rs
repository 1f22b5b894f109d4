//! A8: switches of the stand-in that no other fact's test comes by: how much an abort tells, and what DC IVAC needs.

use applevisor::prelude::*;

use crate::asm::*;
use crate::code;
use crate::guest::*;
use crate::iss;

const DC_IVAC_X0: u32 = 0xd508_7620;

/// With the stage 1 off, an aligned load or store of one register has a syndrome (ISV), and there is no walk to fail (S1PTW).
#[test]
fn a1_08_an_abort_of_ram_tells_all_or_nothing() {
    let mut guest = guest(&code![mov(0, DATA), str(1, 0), hvc(1)]);
    guest.ram.protect(MemPerms::RX).unwrap();
    let syndrome = guest.run_to_class(ec::DATA_ABORT).syndrome;
    let (whole, walk) = (syndrome & iss::ISV != 0, syndrome & iss::S1PTW != 0);
    switch(
        "fault-details",
        match (whole, walk) {
            (true, false) => "architectural",
            (false, true) => "vague",
            (true, true) => "ISV and S1PTW",
            (false, false) => "neither ISV nor S1PTW",
        },
    );
    guest.ram.protect(MemPerms::RWX).unwrap();
    guest.run_to(1);
}

#[test]
fn a4_06_invalidation_of_what_is_only_read_cleans_or_faults() {
    let mut guest = guest(&code![mov(0, DATA), DC_IVAC_X0, hvc(1)]);
    guest.ram.protect(MemPerms::RX).unwrap();
    let exit = guest.run();
    let faults = exit.exception.syndrome >> 26 == ec::DATA_ABORT;
    switch_is_on("ivac-needs-write", faults);
    probe("DC IVAC of a page that the guest may only read", if faults { "permission fault" } else { "works" });
    if faults {
        assert_eq!(iss::status(exit.exception.syndrome), iss::PERMISSION);
        guest.ram.protect(MemPerms::RWX).unwrap();
        guest.run_to(1);
    } else {
        assert_eq!(exit.exception.syndrome, hvc_syndrome(1));
    }
}
