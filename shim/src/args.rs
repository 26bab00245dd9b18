//! The command line that containerd's shim protocol prescribes: Go-style flags, then the action.

use std::path::PathBuf;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    #[error("the flag -{0} is not known")]
    UnknownFlag(String),
    #[error("the flag -{0} lacks its value")]
    MissingValue(String),
    #[error("-id is missing")]
    MissingId,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Args {
    pub namespace: String,
    pub id: String,
    pub address: String,
    pub bundle: Option<PathBuf>,
    pub debug: bool,
    pub action: String,
    /// Only say what this shim is.
    pub info: bool,
}

impl Args {
    pub fn parse(argv: &[String]) -> Result<Self, ArgsError> {
        let mut args = Args::default();
        let mut rest = argv.iter();
        while let Some(word) = rest.next() {
            let Some(flag) = word.strip_prefix('-') else {
                args.action.clone_from(word);
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, inline) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            if name == "debug" {
                args.debug = inline.as_deref() != Some("false");
                continue;
            }
            if name == "info" {
                args.info = true;
                continue;
            }
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| rest.next().cloned())
                    .ok_or(ArgsError::MissingValue(name.to_owned()))
            };
            match name {
                "namespace" => args.namespace = value()?,
                "id" => args.id = value()?,
                "address" => args.address = value()?,
                "bundle" => args.bundle = Some(PathBuf::from(value()?)),
                // What the protocol sends and this shim has no use for.
                "publish-binary" | "socket" => drop(value()?),
                other => return Err(ArgsError::UnknownFlag(other.to_owned())),
            }
        }
        if args.id.is_empty() && !args.info {
            return Err(ArgsError::MissingId);
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn containerds_command_line_is_understood() {
        let args = parse("-namespace k8s.io -address /run/c.sock -publish-binary /bin/c -id a1 -debug start")
            .unwrap();
        assert_eq!(
            (args.namespace.as_str(), args.id.as_str(), args.action.as_str()),
            ("k8s.io", "a1", "start")
        );
        assert!(args.debug);
        let args = parse("--namespace=n --id=b --bundle=/b delete").unwrap();
        assert_eq!((args.bundle, args.action.as_str()), (Some("/b".into()), "delete"));
    }

    #[test]
    fn mistakes_are_named() {
        assert!(parse("-info").unwrap().info);
        assert_eq!(parse("-id a -frob start"), Err(ArgsError::UnknownFlag("frob".into())));
        assert_eq!(parse("start"), Err(ArgsError::MissingId));
        assert_eq!(parse("-id"), Err(ArgsError::MissingValue("id".into())));
    }
}
