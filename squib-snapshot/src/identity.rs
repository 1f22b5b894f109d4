//! The name of one snapshot, by which a diff finds its parent and a state its memory.

use std::fmt;
use std::io;
use std::str::FromStr;

/// 128 random bits. Written as 32 hexadecimal digits.
///
/// ```
/// use squib_snapshot::SnapshotId;
/// let id = SnapshotId::random()?;
/// assert_eq!(id.to_string().parse::<SnapshotId>()?, id);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(pub [u8; 16]);

impl SnapshotId {
    /// A new identity from the system's random numbers.
    ///
    /// # Errors
    /// If the system has none to give.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SnapshotId({self})")
    }
}

/// A text is not a [`SnapshotId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a snapshot identity is 32 hexadecimal digits")]
pub struct ParseIdError;

impl FromStr for SnapshotId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ParseIdError);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| ParseIdError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let id = SnapshotId(*b"0123456789abcdef");
        assert_eq!(id.to_string(), "30313233343536373839616263646566");
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "00", "+0313233343536373839616263646566", "g0313233343536373839616263646566"] {
            assert_eq!(bad.parse::<SnapshotId>(), Err(ParseIdError), "{bad}");
        }
        assert_ne!(SnapshotId::random().unwrap(), SnapshotId::random().unwrap());
    }
}
