//! The one vendor-specific hypervisor service (SMCCC, Arm DEN 0028) that guests may call: the host's time.
//!
//! Numbers and meanings are those of KVM (Linux, Documentation/virt/kvm/arm/hypercalls.rst and ptp_kvm.rst), since guests know them: a
//! Linux with CONFIG_PTP_1588_CLOCK_KVM makes `/dev/ptp0` of it, which chrony or phc2sys can follow. It finds the time again that
//! it lost while it was a snapshot, or while the host slept. The guest is told of no other service of KVM's.
//!
//! Nothing here has a state, so nothing of it is in a snapshot.

/// "Call UID" of the vendor-specific range.
const CALL_UID: u32 = 0x8600_ff01;
/// ARM_SMCCC_VENDOR_HYP_KVM_FEATURES_FUNC_ID.
const FEATURES: u32 = 0x8600_0000;
/// ARM_SMCCC_VENDOR_HYP_KVM_PTP_FUNC_ID.
const PTP: u32 = 0x8600_0001;

/// 28b46fb6-2ec5-11e9-a9ca-4b564d003a74: the services are KVM's.
const UID: [u8; 16] = [0x28, 0xb4, 0x6f, 0xb6, 0x2e, 0xc5, 0x11, 0xe9, 0xa9, 0xca, 0x4b, 0x56, 0x4d, 0x00, 0x3a, 0x74];

/// Arguments of PTP: the counter that is read with the time. Guests see one counter in both.
const VIRTUAL_COUNTER: u32 = 0;
const PHYSICAL_COUNTER: u32 = 1;

/// What X0 to X3 are to hold after a call with `function` in W0 and `argument` in W1; `None` if there is no such service.
/// `now` reads, for one moment, the nanoseconds since 1970 and the guest's counter.
pub fn call(function: u32, argument: u32, now: impl FnOnce() -> (u64, u64)) -> Option<[u32; 4]> {
    let halves = |value: u64| [(value >> 32) as u32, value as u32];
    match (function, argument) {
        (CALL_UID, _) => {
            let (words, _) = UID.as_chunks();
            Some(std::array::from_fn(|n| u32::from_le_bytes(words[n])))
        }
        (FEATURES, _) => Some([1 << (FEATURES & 31) | 1 << (PTP & 31), 0, 0, 0]),
        (PTP, VIRTUAL_COUNTER | PHYSICAL_COUNTER) => {
            let (time, counter) = now();
            let ([time_high, time_low], [counter_high, counter_low]) = (halves(time), halves(counter));
            Some([time_high, time_low, counter_high, counter_low])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(function: u32, argument: u32) -> Option<[u32; 4]> {
        call(function, argument, || (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210))
    }

    /// ARM_SMCCC_VENDOR_HYP_UID_KVM_REG_0 to 3 of Linux' include/linux/arm-smccc.h.
    #[test]
    fn linux_finds_the_uid_it_looks_for() {
        assert_eq!(ask(0x8600_ff01, 0), Some([0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d]));
    }

    #[test]
    fn features_and_time_and_nothing_else() {
        assert_eq!(ask(0x8600_0000, 0), Some([0b11, 0, 0, 0]));
        for counter in [0, 1] {
            assert_eq!(ask(0x8600_0001, counter), Some([0x0123_4567, 0x89ab_cdef, 0xfedc_ba98, 0x7654_3210]));
        }
        // A counter that there is not; protected KVM's memory calls, PV time, the next function; calls to others.
        let unknown = [
            (0x8600_0001, 2),
            (0xc600_0002, 0),
            (0xc500_0020, 0),
            (0x8600_0002, 0),
            (0x8400_ff01, 0),
            (0xc600_0001, 0),
        ];
        for (function, argument) in unknown {
            assert_eq!(ask(function, argument), None, "{function:#x}");
        }
    }
}
