//! How a device's state is written into a snapshot: a version, then the fields. A reader takes exactly the versions it knows.

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

/// Encodes the state of `device`.
pub fn encode<T: Serialize>(device: &str, version: u16, state: &T) -> Result<Vec<u8>> {
    let mut blob = version.to_le_bytes().to_vec();
    let body = bitcode::serialize(state);
    blob.extend(body.map_err(|e| Error::State(format!("the state of {device} cannot be written ({e})")))?);
    Ok(blob)
}

/// Decodes the state of `device`, written as `version`.
pub fn decode<T: DeserializeOwned>(device: &str, version: u16, blob: &[u8]) -> Result<T> {
    let refuse = |reason: String| Error::DeviceState { device: device.into(), reason };
    let Some((found, body)) = blob.split_first_chunk::<2>() else {
        return Err(refuse("it is empty".into()));
    };
    let found = u16::from_le_bytes(*found);
    if found != version {
        return Err(refuse(format!("it has version {found}; this build understands version {version}")));
    }
    bitcode::deserialize(body).map_err(|e| refuse(format!("it is damaged ({e})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_version_is_taken() {
        let blob = encode("x", 3, &(1u32, vec![2u8, 3])).unwrap();
        assert_eq!(decode::<(u32, Vec<u8>)>("x", 3, &blob).unwrap(), (1, vec![2, 3]));
        assert!(decode::<(u32, Vec<u8>)>("x", 2, &blob).unwrap_err().to_string().contains("version 3"));
        assert!(decode::<(u32, Vec<u8>)>("x", 3, &blob[..4]).is_err());
        assert!(decode::<(u32, Vec<u8>)>("x", 3, &[]).is_err());
    }
}
