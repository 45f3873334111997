//! The answer to one request: pure.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>

use http::{HeaderMap, Method, StatusCode};

use super::token::{MAX_TTL_SECONDS, TokenKey};
use super::tree::{self, VERSIONS};
use super::{Facts, Keys};

const TOKEN: &str = "x-aws-ec2-metadata-token";
const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// What goes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Vec<u8>,
    /// A token's time to live in seconds, which goes into its header.
    pub token_ttl: Option<u64>,
    /// The IP TTL that the answer is sent with, where it matters.
    pub hop_limit: Option<u8>,
}

impl Answer {
    fn of(status: StatusCode, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            body: body.into(),
            token_ttl: None,
            hop_limit: None,
        }
    }

    /// A refusal, as a small page like EC2's.
    pub fn refusal(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or_default();
        let code = status.as_u16();
        Self::of(
            status,
            format!(
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<html>\n <head>\n  \
                 <title>{code} - {reason}</title>\n </head>\n <body>\n  \
                 <h1>{code} - {reason}</h1>\n </body>\n</html>\n"
            ),
        )
    }
}

/// Answers a request of the instance that `facts` are about. `now` is in
/// seconds since 1970; `nonce` is random.
pub fn answer(
    facts: &Facts,
    keys: &Keys,
    now: u64,
    nonce: [u8; 8],
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Answer {
    if !facts.instance.settings.metadata.enabled {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    match *method {
        Method::PUT => put(facts, &keys.tokens, now, nonce, path, headers),
        Method::GET | Method::HEAD => get(facts, keys, now, path, headers),
        _ => Answer::refusal(StatusCode::METHOD_NOT_ALLOWED),
    }
}

/// `PUT /latest/api/token`.
fn put(
    facts: &Facts,
    key: &TokenKey,
    now: u64,
    nonce: [u8; 8],
    path: &str,
    headers: &HeaderMap,
) -> Answer {
    // A request that a proxy in the guest passed on is not the guest's own.
    if headers.contains_key("x-forwarded-for") {
        return Answer::refusal(StatusCode::FORBIDDEN);
    }
    if path != "/latest/api/token" {
        return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED);
    }
    let ttl = headers.get(TTL).and_then(|v| v.to_str().ok());
    let ttl = ttl.and_then(|v| v.trim().parse::<u64>().ok());
    let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL_SECONDS).contains(ttl)) else {
        return Answer::refusal(StatusCode::BAD_REQUEST);
    };
    let token = key.issue(&facts.instance.id, now.saturating_add(ttl), nonce);
    Answer {
        token_ttl: Some(ttl),
        hop_limit: Some(facts.instance.settings.metadata.hop_limit),
        ..Answer::of(StatusCode::OK, token)
    }
}

fn get(facts: &Facts, keys: &Keys, now: u64, path: &str, headers: &HeaderMap) -> Answer {
    let token_ttl = match headers.get(TOKEN) {
        Some(token) => {
            let token = token.to_str().ok();
            let left = token.and_then(|t| keys.tokens.remaining(&facts.instance.id, t, now));
            if left.is_none() {
                return Answer::refusal(StatusCode::UNAUTHORIZED);
            }
            left
        }
        None if facts.instance.settings.metadata.tokens_required => {
            return Answer::refusal(StatusCode::UNAUTHORIZED);
        }
        None => None,
    };
    match document(facts, keys, path) {
        Some(body) => Answer {
            token_ttl,
            ..Answer::of(StatusCode::OK, body)
        },
        None => Answer::refusal(StatusCode::NOT_FOUND),
    }
}

fn document(facts: &Facts, keys: &Keys, path: &str) -> Option<Vec<u8>> {
    let path = path.strip_prefix('/')?;
    if path.is_empty() {
        return Some(VERSIONS.join("\n").into_bytes());
    }
    let (version, rest) = path.split_once('/').unwrap_or((path, ""));
    if !VERSIONS.contains(&version) {
        return None;
    }
    // A tag's key may have signs that a path must escape.
    let rest = percent_encoding::percent_decode_str(rest)
        .decode_utf8()
        .ok()?;
    tree::lookup(facts, keys.identity.as_deref(), &rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{InstanceId, InstanceState};
    use crate::network::plan::testing;

    const NOW: u64 = 1_000_000;

    fn facts(edit: impl FnOnce(&mut crate::model::MetadataOptions)) -> Facts {
        let (mut instance, eni) = testing::instance(4, &[], InstanceState::Running);
        edit(&mut instance.settings.metadata);
        let view = testing::view().with(instance).with(eni);
        Facts::read(&view, &InstanceId::from_random(4), "us-east-1").unwrap()
    }

    fn ask(facts: &Facts, method: &str, path: &str, headers: &[(&'static str, &str)]) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let method = method.parse().unwrap();
        let keys = Keys {
            tokens: TokenKey::new([7; 32]),
            identity: None,
        };
        answer(facts, &keys, NOW, [1; 8], &method, path, &map)
    }

    #[test]
    fn tokens_are_given_by_the_rules() {
        let facts = facts(|m| m.hop_limit = 3);
        let path = "/latest/api/token";
        for (headers, path, expected) in [
            (vec![(TTL, "21600")], path, 200),
            (vec![(TTL, "1")], path, 200),
            (vec![(TTL, "0")], path, 400),
            (vec![(TTL, "21601")], path, 400),
            (vec![(TTL, "x")], path, 400),
            (vec![], path, 400),
            (vec![(TTL, "60"), ("x-forwarded-for", "1.2.3.4")], path, 403),
            (vec![(TTL, "60")], "/latest/meta-data/", 405),
        ] {
            let answer = ask(&facts, "PUT", path, &headers);
            assert_eq!(answer.status, expected, "{headers:?} {path}");
            let ok = answer.status.is_success();
            assert_eq!(answer.hop_limit, ok.then_some(3), "{headers:?}");
        }
    }

    #[test]
    fn a_document_needs_a_token_where_it_is_required() {
        let open = facts(|_| ());
        let closed = facts(|m| m.tokens_required = true);
        let path = "/latest/meta-data/instance-id";
        let token = ask(&open, "PUT", "/latest/api/token", &[(TTL, "60")]).body;
        let token = String::from_utf8(token).unwrap();
        for (facts, headers, expected) in [
            (&open, vec![], 200),
            (&closed, vec![], 401),
            (&open, vec![(TOKEN, token.as_str())], 200),
            (&closed, vec![(TOKEN, token.as_str())], 200),
            // A wrong token is worse than none.
            (&open, vec![(TOKEN, "nonsense")], 401),
        ] {
            assert_eq!(
                ask(facts, "GET", path, &headers).status,
                expected,
                "{headers:?}"
            );
        }
        let answer = ask(&closed, "GET", path, &[(TOKEN, token.as_str())]);
        assert_eq!(answer.token_ttl, Some(60));
    }

    #[test]
    fn paths_are_found_or_not() {
        let on = facts(|_| ());
        for (method, path, expected) in [
            ("GET", "/", 200),
            ("GET", "/latest", 200),
            ("GET", "/2021-03-23/meta-data/", 200),
            ("GET", "/2009-04-04/meta-data/local%2Dipv4", 200),
            ("HEAD", "/latest/meta-data/mac", 200),
            ("GET", "/2099-01-01/meta-data/", 404),
            ("GET", "/latest/nothing", 404),
            ("GET", "/latest/user-data", 404),
            ("POST", "/latest/meta-data/", 405),
            ("GET", "no-slash", 404),
            ("GET", "/latest/meta-data/%ff", 404),
        ] {
            assert_eq!(
                ask(&on, method, path, &[]).status,
                expected,
                "{method} {path}"
            );
        }
        let off = facts(|m| m.enabled = false);
        assert_eq!(ask(&off, "GET", "/", &[]).status, 403);
    }

    /// Not a test of a bound: prints what an answer costs beside how many
    /// instances. `cargo test --release … -- --ignored --nocapture what_an_answer`
    #[test]
    #[ignore = "a measurement"]
    fn what_an_answer_costs() {
        use crate::model::Eni;
        for count in [1_u16, 1_000, 10_000] {
            let mut view = testing::view();
            for n in 0..count {
                let (mut instance, mut eni) = testing::instance(4, &[], InstanceState::Running);
                let number = u128::from(n) + 1;
                instance.id = InstanceId::from_random(number);
                eni.id = crate::model::EniId::from_random(number);
                eni.instance = Some(instance.id.clone());
                let [high, low] = n.to_be_bytes();
                eni.private_ip = [172, 31, high, low].into();
                instance.enis = vec![eni.id.clone()];
                view = view.with(instance).with(eni);
            }
            let vpc = testing::vpc_id();
            let rounds = 1_000;
            let began = std::time::Instant::now();
            for _ in 0..rounds {
                let eni = view
                    .by(
                        Eni::BY_ADDRESS,
                        &Eni::at_address(&vpc, [172, 31, 0, 0].into()),
                    )
                    .next()
                    .unwrap();
                let facts = Facts::read(&view, eni.instance.as_ref().unwrap(), "us-east-1");
                let answer = ask(&facts.unwrap(), "GET", "/latest/meta-data/instance-id", &[]);
                assert_eq!(answer.status, 200);
            }
            println!(
                "{count} instances: {:?} an answer",
                began.elapsed() / rounds
            );
        }
    }
}
