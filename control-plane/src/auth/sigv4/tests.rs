//! AWS's published examples, step by step, and what must be refused.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    map
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn authorization(service: &str, signed: &str, signature: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request, \
         SignedHeaders={signed}, Signature={signature}"
    )
}

fn check(
    method: Method,
    query: &str,
    headers: &HeaderMap,
    body: &[u8],
    now: &str,
) -> Result<(), AuthError> {
    let request = Incoming {
        method: &method,
        path: "/",
        query,
        headers,
        body,
    };
    verify(&parse(&request)?, &request, SECRET, &["us-east-1"], at(now))
}

/// The worked example of the reference: IAM's ListUsers.
/// <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>
#[test]
fn the_references_list_users() {
    let headers = headers(&[
        (
            "content-type",
            "application/x-www-form-urlencoded; charset=utf-8",
        ),
        ("host", "iam.amazonaws.com"),
        ("x-amz-date", "20150830T123600Z"),
        (
            "authorization",
            &authorization(
                "iam",
                "content-type;host;x-amz-date",
                "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            ),
        ),
    ]);
    let request = Incoming {
        method: &Method::GET,
        path: "/",
        query: "Action=ListUsers&Version=2010-05-08",
        headers: &headers,
        body: b"",
    };
    let claim = parse(&request).unwrap();
    let canonical = canonical_request(&claim, &request, EMPTY).unwrap();
    assert_eq!(
        canonical,
        format!(
            "GET\n/\nAction=ListUsers&Version=2010-05-08\n\
             content-type:application/x-www-form-urlencoded; charset=utf-8\n\
             host:iam.amazonaws.com\nx-amz-date:20150830T123600Z\n\n\
             content-type;host;x-amz-date\n{EMPTY}"
        )
    );
    let text = string_to_sign(&claim, &canonical);
    assert_eq!(
        text,
        "AWS4-HMAC-SHA256\n20150830T123600Z\n20150830/us-east-1/iam/aws4_request\n\
         f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
    );
    assert_eq!(sign(&claim, SECRET, &text), claim.signature);
    assert!(!claim.is_presigned());
    verify(
        &claim,
        &request,
        SECRET,
        &["us-east-1"],
        at("2015-08-30T12:36:00Z"),
    )
    .unwrap();
}

fn suite(signature: &str, signed: &str, extra: &[(&str, &str)]) -> HeaderMap {
    let authorization = authorization("service", signed, signature);
    let mut all = vec![
        ("host", "example.amazonaws.com"),
        ("x-amz-date", "20150830T123600Z"),
        ("authorization", &authorization),
    ];
    all.extend_from_slice(extra);
    headers(&all)
}

const VANILLA: &str = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";

/// `get-vanilla`, `get-vanilla-query-order-key-case` and
/// `post-x-www-form-urlencoded` of AWS's Signature Version 4 test suite.
#[test]
fn the_test_suite() {
    let now = "2015-08-30T12:36:00Z";
    let vanilla = suite(VANILLA, "host;x-amz-date", &[]);
    check(Method::GET, "", &vanilla, b"", now).unwrap();

    let ordered = suite(
        "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        "host;x-amz-date",
        &[],
    );
    check(
        Method::GET,
        "Param2=value2&Param1=value1",
        &ordered,
        b"",
        now,
    )
    .unwrap();

    let form = suite(
        "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        "content-type;host;x-amz-date",
        &[("content-type", "application/x-www-form-urlencoded")],
    );
    check(Method::POST, "", &form, b"Param1=value1", now).unwrap();
}

#[test]
fn whatever_is_changed_is_noticed() {
    let now = "2015-08-30T12:36:00Z";
    let good = suite(VANILLA, "host;x-amz-date", &[]);
    let mismatch = Err(AuthError::Mismatch);
    assert_eq!(check(Method::POST, "", &good, b"", now), mismatch);
    assert_eq!(check(Method::GET, "a=b", &good, b"", now), mismatch);
    assert_eq!(check(Method::GET, "", &good, b"x", now), mismatch);
    for short in ["", "5fa0", &VANILLA.to_uppercase(), &format!("{VANILLA}0")] {
        let bad = suite(short, "host;x-amz-date", &[]);
        assert_eq!(check(Method::GET, "", &bad, b"", now), mismatch);
    }
    let mut moved = good.clone();
    moved.insert("host", HeaderValue::from_static("other"));
    assert_eq!(check(Method::GET, "", &moved, b"", now), mismatch);
}

#[test]
fn the_clock_may_be_off_by_a_quarter_of_an_hour() {
    let good = suite(VANILLA, "host;x-amz-date", &[]);
    for (now, ok) in [
        ("2015-08-30T12:51:00Z", true),
        ("2015-08-30T12:51:01Z", false),
        ("2015-08-30T12:21:00Z", true),
        ("2015-08-30T12:20:59Z", false),
    ] {
        let result = check(Method::GET, "", &good, b"", now);
        assert_eq!(result.is_ok(), ok, "{now}: {result:?}");
    }
}

#[test]
fn another_region_is_refused() {
    let good = suite(VANILLA, "host;x-amz-date", &[]);
    let request = Incoming {
        method: &Method::GET,
        path: "/",
        query: "",
        headers: &good,
        body: b"",
    };
    let claim = parse(&request).unwrap();
    let now = at("2015-08-30T12:36:00Z");
    let refused = verify(&claim, &request, SECRET, &["eu-west-1"], now);
    assert!(matches!(refused, Err(AuthError::Scope(_))));
}

#[test]
fn what_is_incomplete_is_refused() {
    let now = "2015-08-30T12:36:00Z";
    let refused = |headers: &HeaderMap| {
        let result = check(Method::GET, "", headers, b"", now);
        assert!(
            matches!(result, Err(AuthError::Incomplete(_))),
            "{result:?}"
        );
    };
    refused(&suite(VANILLA, "x-amz-date", &[]));
    refused(&suite(VANILLA, "x-amz-date;host", &[]));
    refused(&suite(VANILLA, "host;host;x-amz-date", &[]));
    refused(&suite(VANILLA, "host", &[]));
    refused(&suite(VANILLA, "host;x-amz-date", &[("x-amz-other", "1")]));
    refused(&suite(VANILLA, "gone;host;x-amz-date", &[]));
    refused(&suite(VANILLA, "host;x-amz-date", &[("x-amz-date", "2")]));
    for text in [
        "Basic x",
        "AWS4-HMAC-SHA256",
        "AWS4-HMAC-SHA256 Credential=a",
        "AWS4-HMAC-SHA256 Credential=a/b, SignedHeaders=host, Signature=c",
    ] {
        refused(&headers(&[
            ("host", "h"),
            ("x-amz-date", "20150830T123600Z"),
            ("authorization", text),
        ]));
    }
    let unsigned = headers(&[("host", "h")]);
    assert_eq!(
        check(Method::GET, "", &unsigned, b"", now),
        Err(AuthError::Missing)
    );
}

#[test]
fn a_presigned_url_lives_as_long_as_it_says() {
    let headers = headers(&[("host", "example.amazonaws.com")]);
    let unsigned = "Action=DescribeRegions&X-Amz-Algorithm=AWS4-HMAC-SHA256\
        &X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fec2%2Faws4_request\
        &X-Amz-Date=20150830T123600Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host";
    let query = |signature: &str| format!("{unsigned}&X-Amz-Signature={signature}");
    let draft = query("");
    let request = Incoming {
        method: &Method::GET,
        path: "/",
        query: &draft,
        headers: &headers,
        body: b"",
    };
    let claim = parse(&request).unwrap();
    let canonical = canonical_request(&claim, &request, EMPTY).unwrap();
    assert!(!canonical.contains("X-Amz-Signature"));
    assert!(claim.is_presigned());
    let signed = query(&sign(&claim, SECRET, &string_to_sign(&claim, &canonical)));
    let at = |now| check(Method::GET, &signed, &headers, b"", now);
    at("2015-08-30T13:36:00Z").unwrap();
    assert!(matches!(
        at("2015-08-30T13:36:01Z"),
        Err(AuthError::Expired { .. })
    ));
    let longer = signed.replace("Expires=3600", "Expires=3601");
    let result = check(Method::GET, &longer, &headers, b"", "2015-08-30T12:36:00Z");
    assert_eq!(result, Err(AuthError::Mismatch));
}

#[test]
fn another_algorithm_in_a_url_is_refused() {
    let headers = headers(&[("host", "h")]);
    let query = "X-Amz-Algorithm=AWS4-ECDSA-P256-SHA256\
        &X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fus-east-1%2Fec2%2Faws4_request\
        &X-Amz-Date=20150830T123600Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host\
        &X-Amz-Signature=x";
    let request = Incoming {
        method: &Method::GET,
        path: "/",
        query,
        headers: &headers,
        body: b"",
    };
    let refused = parse(&request).unwrap_err();
    assert!(
        refused.to_string().contains("X-Amz-Algorithm must be"),
        "{refused}"
    );
}

#[test]
fn the_number_of_signed_headers_is_bounded() {
    for (count, expected) in [(MAX_SIGNED_HEADERS, true), (MAX_SIGNED_HEADERS + 1, false)] {
        let mut names: Vec<String> = (1..count).map(|n| format!("a{n:03}")).collect();
        names.push("host".into());
        let request = Incoming {
            method: &Method::GET,
            path: "/",
            query: "",
            headers: &suite(VANILLA, &names.join(";"), &[]),
            body: b"",
        };
        assert_eq!(parse(&request).is_ok(), expected, "{count}");
    }
}

#[test]
fn a_digest_of_the_body_that_came_along_must_be_its_own() {
    let body = b"Param1=value1";
    let of_body = hex::encode(Sha256::digest(body));
    let now = "2015-08-30T12:36:00Z";
    for (given, expected) in [
        (of_body.clone(), Ok(())),
        (of_body.to_uppercase(), Ok(())),
        (EMPTY.to_owned(), Err(AuthError::Payload)),
        ("UNSIGNED-PAYLOAD".to_owned(), Err(AuthError::Payload)),
    ] {
        let signed = "host;x-amz-content-sha256;x-amz-date";
        let with = |signature: &str| suite(signature, signed, &[("x-amz-content-sha256", &given)]);
        let draft = with("");
        let request = Incoming {
            method: &Method::POST,
            path: "/",
            query: "",
            headers: &draft,
            body,
        };
        let claim = parse(&request).unwrap();
        let canonical = canonical_request(&claim, &request, &of_body).unwrap();
        let signature = sign(&claim, SECRET, &string_to_sign(&claim, &canonical));
        let answer = check(Method::POST, "", &with(&signature), body, now);
        assert_eq!(answer, expected, "{given}");
    }
}
