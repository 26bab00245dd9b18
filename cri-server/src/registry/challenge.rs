//! The `WWW-Authenticate` header: which logins a registry accepts (RFC 9110, section 11).

/// One way to log in that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case: `basic`, `bearer`.
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter by its name in lower case.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All challenges of one header value. What is malformed is skipped: a login that we cannot read is one that we
/// cannot answer.
#[must_use]
pub fn parse(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    for item in split_outside_quotes(header) {
        // "Scheme key=value" starts a challenge, "key=value" continues one, "Scheme" or "Scheme token68" stands alone.
        let (scheme, rest) = match item.split_once([' ', '\t']) {
            Some((first, rest)) if is_token(first) && !rest.trim_start().starts_with('=') => {
                (Some(first), rest.trim_start())
            }
            _ if is_token(item) => (Some(item), ""),
            _ => (None, item),
        };
        if let Some(scheme) = scheme {
            challenges.push(Challenge { scheme: scheme.to_ascii_lowercase(), parameters: Vec::new() });
        }
        if let (Some(challenge), Some(parameter)) = (challenges.last_mut(), parse_parameter(rest)) {
            challenge.parameters.push(parameter);
        }
    }
    challenges
}

fn split_outside_quotes(text: &str) -> Vec<&str> {
    let (mut items, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                items.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(&text[start..]);
    items.into_iter().map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn parse_parameter(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    if !is_token(key) {
        return None;
    }
    let value = match value.strip_prefix('"') {
        Some(rest) => unquote(rest)?,
        None if is_token(value) || value.starts_with("http") => value.to_owned(),
        None => return None,
    };
    Some((key.to_ascii_lowercase(), value))
}

/// The text up to the closing quote, which must be the end.
fn unquote(text: &str) -> Option<String> {
    let mut value = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return chars.next().is_none().then_some(value),
            '\\' => value.push(chars.next()?),
            _ => value.push(c),
        }
    }
    None
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(header: &str) -> Vec<String> {
        let show = |c: Challenge| {
            let parameters: Vec<String> = c.parameters.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("{} {}", c.scheme, parameters.join(";")).trim_end().to_owned()
        };
        parse(header).into_iter().map(show).collect()
    }

    #[test]
    fn headers_of_registries_are_understood() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                vec![
                    "bearer realm=https://auth.docker.io/token;service=registry.docker.io;scope=repository:a/b:pull",
                ],
            ),
            (r#"Basic realm="a, b""#, vec!["basic realm=a, b"]),
            (r#"basic"#, vec!["basic"]),
            (r#"Negotiate, Basic realm=x"#, vec!["negotiate", "basic realm=x"]),
            (r#"Negotiate abc==, BASIC realm="x""#, vec!["negotiate", "basic realm=x"]),
            (
                r#"Bearer scope="repository:x:pull,push" , Realm = "https://h/t" ,Basic realm="r""#,
                vec!["bearer scope=repository:x:pull,push;realm=https://h/t", "basic realm=r"],
            ),
            (r#"Bearer realm="a\"b\\c""#, vec![r#"bearer realm=a"b\c"#]),
            (r#"Bearer realm=https://h/t"#, vec!["bearer realm=https://h/t"]),
        ] {
            assert_eq!(flat(header), expected, "{header}");
        }
    }

    #[test]
    fn malformed_headers_give_no_parameters() {
        for (header, expected) in [
            ("", vec![]),
            (",,,", vec![]),
            (r#"realm="x""#, vec![]),
            (r#"Bearer realm="unclosed"#, vec!["bearer"]),
            (r#"Bearer realm="x"y"#, vec!["bearer"]),
            (r#"Bearer realm="x\"#, vec!["bearer"]),
        ] {
            assert_eq!(
                flat(header),
                Vec::<String>::from_iter(expected.into_iter().map(str::to_owned)),
                "{header}"
            );
        }
    }

    #[test]
    fn no_header_upsets_the_parser() {
        let pieces = ["Bearer", " ", "=", ",", "\"", "\\", "realm", "é", "\t", "https://h/t", "x"];
        // A fixed sequence (xorshift), so that a failure can be repeated.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..100_000 {
            let mut text = String::new();
            for _ in 0..=(state % 12) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                text.push_str(pieces[(state >> 32) as usize % pieces.len()]);
            }
            for challenge in parse(&text) {
                assert!(is_token(&challenge.scheme), "{text:?}");
                assert!(challenge.parameters.iter().all(|(key, _)| is_token(key)), "{text:?}");
            }
        }
    }
}
