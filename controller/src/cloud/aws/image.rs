//! Machine images: an alias, an identifier, or an owner and the pattern of a name.
//!
//! An owner is never left open: anybody may publish an image under any name.

/// Processor architecture, as AWS names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Arch {
    /// Intel and AMD.
    X86_64,
    /// Graviton.
    Arm64,
}

impl Arch {
    /// As AWS writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Arm64 => "arm64",
        }
    }

    /// Of a text of AWS; `None` for those that no machine of ours runs on.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::X86_64, Self::Arm64].into_iter().find(|a| a.as_str() == text)
    }
}

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageQuery {
    /// This very image.
    Id(String),
    /// The newest one of an owner whose name matches.
    Newest {
        /// Account, or `amazon`, `aws-marketplace`, `self`.
        owner: String,
        /// Pattern with `*` and `?`.
        name: String,
        /// Of machines and image; absent: any.
        arch: Option<Arch>,
    },
}

/// An image that cannot be looked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Its shape is wrong.
    #[error(
        "{0:?} is not an image (ubuntu, nvidia, ami-…, or USER@OWNER:ARCH:NAME with an account as owner and x86_64, arm64 or nothing as architecture)"
    )]
    Shape(String),
    /// The owner is left open.
    #[error(
        "{0:?} takes images from anybody, and anybody may give an image any name: name the owner's account"
    )]
    AnyOwner(String),
    /// The alias has none for this architecture.
    #[error("there is no image {alias:?} for {} machines: name one as USER@OWNER:arm64:NAME", arch.as_str())]
    Architecture {
        /// As users write it.
        alias: &'static str,
        /// What machines were asked for.
        arch: Arch,
    },
}

/// Canonical's account.
const CANONICAL: &str = "099720109477";
/// Account of the deep learning images.
const DEEP_LEARNING: &str = "898082745236";

/// Whether a text can name an image of any architecture.
///
/// # Errors
/// See [`ImageError`].
pub fn check(image: &str) -> Result<(), ImageError> {
    query(image, Arch::X86_64).or_else(|_| query(image, Arch::Arm64)).map(drop)
}

/// What a name stands for on machines of an architecture.
///
/// # Errors
/// See [`ImageError`].
pub fn query(image: &str, machine: Arch) -> Result<ImageQuery, ImageError> {
    let newest = |owner: &str, name: &str| ImageQuery::Newest {
        owner: owner.to_owned(),
        name: name.to_owned(),
        arch: Some(machine),
    };
    match (image, machine) {
        ("ubuntu", Arch::X86_64) => {
            return Ok(newest(CANONICAL, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*"));
        }
        ("ubuntu", Arch::Arm64) => {
            return Ok(newest(CANONICAL, "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-*"));
        }
        ("nvidia", Arch::X86_64) => {
            return Ok(newest(
                DEEP_LEARNING,
                "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) *",
            ));
        }
        ("nvidia", Arch::Arm64) => {
            return Err(ImageError::Architecture { alias: "nvidia", arch: machine });
        }
        _ => {}
    }
    let shape = || ImageError::Shape(image.to_owned());
    let is_id = |text: &str| {
        text.strip_prefix("ami-").is_some_and(|hex| {
            (8..=17).contains(&hex.len())
                && hex.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        })
    };
    if is_id(image) {
        return Ok(ImageQuery::Id(image.to_owned()));
    }
    // The user is for logging in, which nobody does; it is part of the syntax that people have in their files.
    let (_user, rest) = image.split_once('@').ok_or_else(shape)?;
    let (owner, rest) = rest.split_once(':').ok_or_else(shape)?;
    let (arch, name) = rest.split_once(':').ok_or_else(shape)?;
    if owner.is_empty() || owner.contains('*') {
        return Err(ImageError::AnyOwner(image.to_owned()));
    }
    let account = owner.len() == 12 && owner.bytes().all(|b| b.is_ascii_digit());
    if !account && !["amazon", "aws-marketplace", "aws-backup-vault", "self"].contains(&owner) {
        return Err(shape());
    }
    let arch = match arch {
        "" | "*" => None,
        text => Some(Arch::parse(text).ok_or_else(shape)?),
    };
    if name.is_empty() {
        return Err(shape());
    }
    Ok(ImageQuery::Newest { owner: owner.to_owned(), name: name.to_owned(), arch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_syntax() {
        let query = query("ubuntu@099720109477:x86_64:*ubuntu-jammy*", Arch::X86_64);
        let name = "*ubuntu-jammy*".to_owned();
        let owner = CANONICAL.to_owned();
        assert_eq!(query, Ok(ImageQuery::Newest { owner, name, arch: Some(Arch::X86_64) }));
    }

    #[test]
    fn names_may_have_colons_and_architectures_may_be_left_out() {
        let Ok(ImageQuery::Newest { name, arch, .. }) = query("u@self::a:b*", Arch::Arm64) else { panic!() };
        assert_eq!((name.as_str(), arch), ("a:b*", None));
    }

    #[test]
    fn an_owner_is_never_left_open() {
        for open in ["u@*:x86_64:ubuntu*", "u@:x86_64:ubuntu*"] {
            assert_eq!(query(open, Arch::X86_64), Err(ImageError::AnyOwner(open.to_owned())));
        }
    }

    #[test]
    fn identifiers_and_nonsense() {
        assert!(matches!(query("ami-0123456789abcdef0", Arch::X86_64), Ok(ImageQuery::Id(_))));
        for bad in [
            "",
            "debian",
            "ami-",
            "ami-xyz",
            "u@099720109477:sparc:x",
            "u@099720109477:x86_64:",
            "u@someone:x86_64:x",
        ] {
            assert!(matches!(query(bad, Arch::X86_64), Err(ImageError::Shape(_))), "{bad}");
        }
    }

    #[test]
    fn aliases_follow_the_machine() {
        let of = |image, arch| match query(image, arch) {
            Ok(ImageQuery::Newest { name, arch, .. }) => (name, arch),
            other => panic!("{other:?}"),
        };
        assert!(of("ubuntu", Arch::X86_64).0.contains("amd64"));
        assert!(of("ubuntu", Arch::Arm64).0.contains("arm64"));
        assert_eq!(of("nvidia", Arch::X86_64).1, Some(Arch::X86_64));
        assert!(matches!(query("nvidia", Arch::Arm64), Err(ImageError::Architecture { .. })));
    }
}
