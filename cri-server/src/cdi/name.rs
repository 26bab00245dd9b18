//! Names of devices, `vendor.com/class=device`, and where a container's request holds them.

use std::collections::HashMap;
use std::fmt;

use cofferdam_proto::cri;

use super::error::CdiError;

/// Annotations with this prefix hold names, with commas between them.
const ANNOTATIONS: &str = "cdi.k8s.io/";
/// The most devices that one container may ask for.
const MAX_DEVICES: usize = 1024;

/// A device's full name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceName {
    /// `vendor.com/class`.
    pub kind: String,
    pub device: String,
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl DeviceName {
    /// Reads a full name.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, CdiError> {
        let invalid = |why| CdiError::Name { name: text.chars().take(300).collect(), why };
        let (kind, device) =
            text.split_once('=').ok_or_else(|| invalid("expected vendor.com/class=device"))?;
        check_kind(kind).map_err(invalid)?;
        check_device(device).map_err(invalid)?;
        Ok(Self { kind: kind.to_owned(), device: device.to_owned() })
    }
}

/// `vendor.com/class`: a name of the domain name system and a word.
pub(super) fn check_kind(kind: &str) -> Result<(), &'static str> {
    let (vendor, class) = kind.split_once('/').ok_or("its kind has no vendor/class")?;
    let word = |text: &str, others: &[u8]| {
        let bytes = text.as_bytes();
        let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        bytes.first().is_some_and(u8::is_ascii_alphabetic)
            && ends(bytes.last())
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || others.contains(b))
    };
    if vendor.len() > 253 || !word(vendor, b"-_.") {
        return Err("its vendor is no name");
    }
    if class.len() > 63 || !word(class, b"-_.") {
        return Err("its class is no name");
    }
    Ok(())
}

pub(super) fn check_device(device: &str) -> Result<(), &'static str> {
    let bytes = device.as_bytes();
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:".contains(b);
    let fits = bytes.len() <= 253 && ends(bytes.first()) && ends(bytes.last()) && bytes.iter().all(inner);
    fits.then_some(()).ok_or("its device is no name")
}

/// The devices that a container asks for, in the CRI's field and in annotations; each once.
///
/// # Errors
/// When a name is none, or there are too many.
pub fn requested(
    field: &[cri::CdiDevice],
    annotations: &HashMap<String, String>,
) -> Result<Vec<DeviceName>, CdiError> {
    let mut keys: Vec<_> = annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATIONS)).collect();
    keys.sort();
    let annotated = keys.into_iter().flat_map(|(_, value)| value.split(','));
    let mut names = Vec::new();
    for text in field.iter().map(|device| device.name.as_str()).chain(annotated) {
        let name = DeviceName::parse(text)?;
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > MAX_DEVICES {
            return Err(CdiError::Name {
                name: name_of(&names),
                why: "a container has 1024 devices at most",
            });
        }
    }
    Ok(names)
}

fn name_of(names: &[DeviceName]) -> String {
    names.last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_names_are_told_from_others() {
        for good in ["vendor.com/gpu=0", "nvidia.com/gpu=GPU-1:0", "a/b=c", "v.io/net.dev_x=all"] {
            assert_eq!(DeviceName::parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "gpu0",
            "vendor.com=0",
            "vendor.com/gpu",
            "vendor.com/gpu=",
            "/gpu=0",
            "1v/gpu=0",
            "vendor.com/gpu-=0",
            "vendor.com/gpu=0:",
            "vendor.com/a b=0",
            "v/c=a/b",
        ] {
            assert!(DeviceName::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fields_and_annotations_are_put_together() {
        let field = [cri::CdiDevice { name: "v/c=1".into() }];
        let annotations = HashMap::from([
            ("cdi.k8s.io/b".to_owned(), "v/c=3".to_owned()),
            ("cdi.k8s.io/a".to_owned(), "v/c=2,v/c=1".to_owned()),
            ("other".to_owned(), "nonsense".to_owned()),
        ]);
        let names: Vec<_> =
            requested(&field, &annotations).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["v/c=1", "v/c=2", "v/c=3"]);
        let bad = HashMap::from([("cdi.k8s.io/a".to_owned(), "v/c=2, v/c=1".to_owned())]);
        assert!(requested(&[], &bad).is_err());
    }
}
