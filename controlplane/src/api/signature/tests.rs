//! The test vectors of the platform's own signers (jdcloud-sdk-python, jdcloud-sdk-rust-signer), and requests that
//! must fail.
#![allow(clippy::unwrap_used)]

use axum::http::{HeaderName, HeaderValue};

use super::*;

const PATH: &str = "/v1/regions/cn-north-1/instances";
const NONCE: &str = "X-Jdcloud-Nonce";

fn header_map(pairs: &[(&str, &str)]) -> HeaderMap {
    let pair = |(name, value): &(&str, &str)| -> (HeaderName, HeaderValue) {
        (name.parse().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    pairs.iter().map(pair).collect()
}

#[test]
fn jdcloud3_test_vectors_verify() {
    let date = "20190917T064708Z";
    let rows = [
        (
            r#"/v1/regions/cn-north-1/instances/ /`!@#$%^&*()=+/0123456789/[]\;',<>?:"{}|/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/-_.~:GET"#,
            "",
            NONCE,
            "925b9455228ef23ee7ec2dd3e33f7e645bcbcb3f4732894c17e4a0cf1d41d1e6",
        ),
        (
            "/v1/regions/cn-north-1/instances/中文:GET",
            "",
            NONCE,
            "936ed2dcb6fb4271ad640e0f46f1fe61763a0bad8bb4f4eb1224261f969612fa",
        ),
        ("", "", NONCE, "44c5ec30b6185516986ae171d8276552bc0f37f6a536a44e4f578958fc1c12be"),
        ("v1", "", NONCE, "92cd3ed582c13af58b4c81ddad150c350e656c6cc9e78ec154d7385e499b91b6"),
        ("v1/", "", NONCE, "035689ae2ce6a3603928ac3d60a6d2fbfb550d33c5da983342a6356419ccd914"),
        (
            r#"///v1/regions/cn-north-1/instances//// //`!@#$%^&*()=+/0123456789/[]\;',<>?:"{}|/////abcdefghijklmnopqrstuvwxyz//ABCDEFGHIJKLMNOPQRSTUVWXYZ/-_.~:GET/"#,
            "",
            NONCE,
            "92e4897d2a74a899399f5443615ddf110978363b9097932e522e079e6eb5f65b",
        ),
        (
            "/v1/regions/cn-north-1/instances/%20/%60%21%40%23%24%25%5E%26%2A%28%29%3D%2B/0123456789/%5B%5D%5C%5C%3B%27%2C%3C%3E%3F%3A%5C%22%7B%7D%7C/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/-_.~%3AGET",
            "",
            NONCE,
            "027b5bbd35956b84b8773eb450c0405cb4e424eab13f64828926ee41838c48d0",
        ),
        (
            "%2Fv1%2Fregions%2F%2F%2Fcn-north-1%2Finstances",
            "",
            NONCE,
            "33df199719f9edc6de860e6b53c61d4824e1f389e6030fd37ddc977fda29e467",
        ),
        (
            "/v1%2Fregions/cn-north-1%2F%2F%2Finstances",
            "",
            NONCE,
            "33df199719f9edc6de860e6b53c61d4824e1f389e6030fd37ddc977fda29e467",
        ),
        ("/v1/%2/%2f/%2b%f", "", NONCE, "6610271450ea321baab326f8debc51a2e4dd7e73b04200275a1d9b3897045caf"),
        (
            "/v1%2Fregions/cn-north-1%2F%2F%2Finstances/ + /+/ +/+ /%2B%20%2B%2F%2F",
            "",
            NONCE,
            "7286237483a7fcc51ff7621c9a5c586a0ec85fd06cbf91c20adde2ec3b5e4d97",
        ),
        (PATH, "=a&a=a", NONCE, "43efb5fb00e86faf35d8bf0bed3b72e84cfc98ee4754065e29c3caa7bcaa12cb"),
        (PATH, "=&a=a", NONCE, "43efb5fb00e86faf35d8bf0bed3b72e84cfc98ee4754065e29c3caa7bcaa12cb"),
        (
            PATH,
            "aa=aa&aa%3Daa=&aa=aa%3D&aa=&aa=aaa&aaa=aaa&aaa=aa&aaa=a&ab=aa&ab=aa&cc=&cc=&bb=aa&bb=",
            NONCE,
            "8ccc3c9af11e964b3c5d6020d2af49e97e27fbb23e2b8f57bdc84815e471d54b",
        ),
        (
            PATH,
            r#"special key=/ /`!@#$%^*()+/0123456789/[]\;',<>?:"{}|/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/-_.~&/ /`!@#$%^*()+/0123456789/[]\;',<>?:"{}|/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/-_.~=special value"#,
            NONCE,
            "684a4397896f81eaefbba29c42be66080b32993dce700e1647608a64595fd655",
        ),
        (
            PATH,
            " =blank&%20=blank&+= 2&%2b= 1&blank= &blank=+&blank=%20",
            NONCE,
            "78c0a4db84050d773533c78c1a0f73bf974faf5df881e39b18c3e0de8110324e",
        ),
        (
            PATH,
            " =blank&%2=blank&+=jia0&%2b=jia1&%2B=jia2&blank= %2b%2f%2/&blank=+&%2/blank=%0%f",
            NONCE,
            "972987a6f95be456935cde8be8f106114e2ad27465a507644e61f021a98a7218",
        ),
        (
            PATH,
            "中文参数=中文参数值",
            NONCE,
            "7e3094d23adde49fcc99b7d0de911d7ecaa7767590edd57769d7bdbaca919276",
        ),
        (PATH, "", " X-Jdcloud- -Nonce ", "5d955d1de475eac2b4378473ca0adce8fddd13f45d2be53bc2ffb6eee6450ba4"),
        (
            PATH,
            "",
            "  X-Jdcloud-  -Nonce  ",
            "a03bb8d755cb93e4d8846fe5fcad180f319fa50356f63e8afdc749bd1a95695f",
        ),
        (PATH, "", "aaa", "12ed9fbf2f8ebe6afcdd23853c9e58f37642f8a0361765557d2e4915f1e995e4"),
        (
            PATH,
            "",
            r#"/`!@#$%^&*()=+/0123456789/[]\;',<>?:"{}|/abcdefghijklmnopqrstuvwxyz/ABCDEFGHIJKLMNOPQRSTUVWXYZ/-_.~"#,
            "9046b11889b993a808fccf1322f7f04e7e5a7e0cc22d8b65e9986a8aab986ad7",
        ),
        (
            PATH,
            "",
            r" \n  as\r\n \r df\r\n   ",
            "b30037126cdc4385e957e24e6d73ea28a8fb66f71ee68b8f60de12d3292d19c6",
        ),
    ];
    for (path, query, nonce, signature) in rows {
        let headers = header_map(&[
            ("host", "apigw-internal-dev.cn-north-1.jcloudcs.com:8000"),
            ("content-type", "application/json"),
            ("x-jdcloud-date", date),
            ("x-jdcloud-nonce", nonce),
        ]);
        let text = format!(
            "JDCLOUD3-HMAC-SHA256 Credential=ak/20190917/cn-north-1/apigatewaytestproductline/jdcloud3_request, \
             SignedHeaders=content-type;host;x-jdcloud-date;x-jdcloud-nonce, Signature={signature}"
        );
        let request = SignedRequest { method: "GET", path, query, headers: &headers, date, body: b"" };
        assert!(Authorization::parse(&text).unwrap().verify(&request, "sk"), "{path} {query} {nonce}");
    }
}

/// The header and the request of the JDCLOUD2 test vector.
fn jdcloud2_vector<'a>(headers: &'a HeaderMap) -> (String, SignedRequest<'a>) {
    let text = "JDCLOUD2-HMAC-SHA256 Credential=ak/20180405/cn-north-1/service_name/jdcloud2_request, \
                SignedHeaders=content-type;x-jdcloud-date;x-jdcloud-nonce, \
                Signature=cea138630c57ba3de51933926e3b1657c34b4d1b6f86d360511bf40a09f63729";
    let (query, date) = ("pageNumber=2&pageSize=10", "20180405T010203Z");
    (text.to_owned(), SignedRequest { method: "GET", path: PATH, query, headers, date, body: b"" })
}

fn jdcloud2_headers() -> HeaderMap {
    header_map(&[
        ("content-type", "application/json"),
        ("user-agent", "JdcloudSdkRust/0.1.0"),
        ("x-jdcloud-date", "20180405T010203Z"),
        ("x-jdcloud-nonce", "55f3919e-3a7d-4174-b117-f150ff25e274"),
    ])
}

#[test]
fn jdcloud2_test_vector_verifies() {
    let headers = jdcloud2_headers();
    let (text, request) = jdcloud2_vector(&headers);
    assert!(Authorization::parse(&text).unwrap().verify(&request, "sk"));
}

#[test]
fn signature_of_altered_request_is_rejected() {
    let genuine = jdcloud2_headers();
    let (text, request) = jdcloud2_vector(&genuine);
    let authorization = Authorization::parse(&text).unwrap();
    let without = |name: &str| {
        let mut headers = genuine.clone();
        headers.remove(name);
        headers
    };
    let mut twice = genuine.clone();
    twice.append("x-jdcloud-nonce", HeaderValue::from_static("another"));
    let (no_nonce, no_type) = (without("x-jdcloud-nonce"), without("content-type"));
    for other in [
        SignedRequest { method: "DELETE", ..request },
        SignedRequest { path: "/v1/regions/cn-north-2/instances", ..request },
        SignedRequest { query: "pageNumber=2&pageSize=100", ..request },
        SignedRequest { query: "pageNumber=2", ..request },
        SignedRequest { date: "20180405T010204Z", ..request },
        SignedRequest { body: b"{}", ..request },
        SignedRequest { headers: &no_nonce, ..request },
        SignedRequest { headers: &no_type, ..request },
        SignedRequest { headers: &twice, ..request },
    ] {
        assert!(!authorization.verify(&other, "sk"), "{other:?}");
    }
    for secret in ["", "s", "sk ", "SK"] {
        assert!(!authorization.verify(&request, secret), "{secret}");
    }
    // An unsigned header may change. The order of the query parameters may change too, because the canonical form
    // sorts them.
    let mut other_agent = genuine.clone();
    other_agent.insert("user-agent", HeaderValue::from_static("curl"));
    assert!(authorization.verify(&SignedRequest { headers: &other_agent, ..request }, "sk"));
    assert!(authorization.verify(&SignedRequest { query: "pageSize=10&pageNumber=2", ..request }, "sk"));
}

#[test]
fn authorization_header_malformed_is_rejected() {
    let headers = jdcloud2_headers();
    let (text, _) = jdcloud2_vector(&headers);
    assert!(Authorization::parse(&text).is_some());
    for (from, to) in [
        ("JDCLOUD2-HMAC", "JDCLOUD4-HMAC"),
        ("jdcloud2_request", "jdcloud3_request"),
        ("ak/", ""),
        ("ak/", "ak/more/"),
        ("Signature=ce", "Signature="),
        ("Signature=ce", "Signature=ceg0"),
        ("Signature=c", "Signature=+"),
        (", Signature", ", Signed"),
        ("SignedHeaders=", "SignedHeader="),
    ] {
        assert_eq!(Authorization::parse(&text.replace(from, to)), None, "{to}");
    }
    for text in ["", "Basic YTpi", "JDCLOUD2-HMAC-SHA256", &format!("{text}, Signature=00")] {
        assert_eq!(Authorization::parse(text), None, "{text}");
    }
}

#[test]
fn colon_in_path_is_percent_encoded_for_signing() {
    assert_eq!(
        normalize_path("/v1/regions/r/keypairs/my-test:attach"),
        "/v1/regions/r/keypairs/my-test%3Aattach"
    );
    assert_eq!(
        normalize_path("/v1/regions/r/keypairs/my-test%3aattach"),
        "/v1/regions/r/keypairs/my-test%3Aattach"
    );
}
