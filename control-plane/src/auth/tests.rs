use http::{HeaderMap, HeaderValue, Method, header};

use super::{credentials::AccessKey, *};

const ACCOUNT: &str = "111122223333";

fn credentials() -> CredentialStore {
    let key = AccessKey {
        access_key_id: "AKIDEXAMPLE".into(),
        secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
    };
    CredentialStore::new(ACCOUNT, key)
}

/// `get-vanilla` of AWS's Signature Version 4 test suite, signed with this key.
fn signed_with(key: &str) -> HeaderMap {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={key}/20150830/us-east-1/service/aws4_request, \
         SignedHeaders=host;x-amz-date, \
         Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
    );
    let mut headers = HeaderMap::new();
    headers.insert(
        header::HOST,
        HeaderValue::from_static("example.amazonaws.com"),
    );
    headers.insert("x-amz-date", HeaderValue::from_static("20150830T123600Z"));
    headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
    headers
}

fn incoming(headers: &HeaderMap) -> Incoming<'_> {
    Incoming {
        method: &Method::GET,
        path: "/",
        query: "",
        headers,
        body: b"",
    }
}

fn caller() -> Caller {
    Caller {
        account: ACCOUNT.into(),
        region: "us-east-1".into(),
        arn: Arn::root(ACCOUNT),
        user_id: ACCOUNT.into(),
        access_key_id: "AKIDEXAMPLE".into(),
    }
}

fn instance(id: &str) -> Arn {
    Arn::new("ec2", "us-east-1", ACCOUNT, "instance", id)
}

fn target(id: &str) -> Target {
    Target {
        arn: instance(id),
        keys: Keys::new(),
    }
}

#[test]
fn who_signed_is_the_accounts_root() {
    let now = "2015-08-30T12:36:00Z".parse().unwrap();
    let headers = signed_with("AKIDEXAMPLE");
    let request = incoming(&headers);
    let authentic = authenticate(&request, &credentials(), &["us-east-1"], now);
    assert_eq!(authentic.unwrap().0, caller());
    let elsewhere = authenticate(&request, &credentials(), &["eu-west-1"], now);
    assert!(matches!(elsewhere, Err(AuthError::Scope(_))));
}

#[test]
fn a_head_alone_shows_whether_its_key_exists() {
    let of = |headers: &HeaderMap| claim(&incoming(headers), &credentials());
    let known = signed_with("AKIDEXAMPLE");
    assert_eq!(of(&known), Ok(()));
    assert_eq!(of(&signed_with("AKIDOTHER")), Err(AuthError::UnknownKey));
    assert_eq!(of(&HeaderMap::new()), Err(AuthError::Missing));
    let mut with_token = known;
    with_token.insert("x-amz-security-token", HeaderValue::from_static("x"));
    assert_eq!(of(&with_token), Err(AuthError::SessionToken));
}

#[test]
fn an_accounts_root_may_do_everything_and_nobody_else() {
    let (root, keys) = (caller(), Keys::new());
    let other = Caller {
        arn: Arn::root("444455556666"),
        ..root.clone()
    };
    for (caller, allowed) in [(&root, true), (&other, false)] {
        let request = AuthorizationRequest {
            caller,
            action: "ec2:RunInstances",
            target: None,
            keys: &keys,
        };
        assert_eq!(RootOnly.allow(&request), allowed);
    }
    let denied = authorize(&RootOnly, &other, "ec2:RunInstances", &[], &keys).unwrap_err();
    assert_eq!(
        denied.to_string(),
        "You are not authorized to perform this operation. \
         arn:aws:iam::444455556666:root may not ec2:RunInstances"
    );
}

/// Allows these to be acted on: ids, or "" for what is about no resource.
struct Only(&'static [&'static str]);

impl Policies for Only {
    fn allow(&self, request: &AuthorizationRequest<'_>) -> bool {
        let id = request.target.map_or("", |target| &target.arn.id);
        self.0.contains(&id)
    }
}

#[test]
fn every_target_must_be_allowed() {
    let (a, b) = (target("i-a"), target("i-b"));
    for (allowed, targets, expected) in [
        (&["i-a", "i-b"][..], &[a.clone(), b.clone()][..], true),
        (&["i-a"], &[a.clone(), b.clone()], false),
        (&["i-b"], &[a.clone(), b.clone()], false),
        (&[], std::slice::from_ref(&a), false),
        (&[""], &[], true),
        (&["i-a"], &[], false),
        (&[""], std::slice::from_ref(&b), false),
    ] {
        let policies = Only(allowed);
        let answer = authorize(&policies, &caller(), "ec2:Do", targets, &Keys::new());
        assert_eq!(answer.is_ok(), expected, "{allowed:?} {targets:?}");
    }
}

#[test]
fn what_was_allowed_covers_its_targets_and_what_goes_along() {
    let policies = Only(&["i-a", Arn::ANY]);
    let named = [target("i-a")];
    let named = authorize(&policies, &caller(), "ec2:Do", &named, &Keys::new()).unwrap();
    assert_eq!(named.action(), "ec2:Do");
    assert!(named.covers(&instance("i-a"), true));
    assert!(!named.covers(&instance("i-b"), true));
    assert!(!named.covers(&instance("i-b"), false));

    let any = [target(Arn::ANY)];
    let any = authorize(&policies, &caller(), "ec2:Do", &any, &Keys::new()).unwrap();
    assert!(any.covers(&instance("i-b"), false));
    assert!(!any.covers(&instance("i-b"), true), "it is there already");
    let more = any.along([instance("i-b")]);
    assert!(more.covers(&instance("i-b"), true));
}
