//! Signatures of `ssh-keygen -Y sign` (OpenSSH 9.2) over [`PAYLOAD`], intact and modified.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::policy::local_time::LocalTimeZone;

const PAYLOAD: &[u8] = br#"{"commandId":"c-1"}"#;

/// A key, and its signature.
const ED25519: (&str, &str) = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfeK8ugbV2/DqQap/U5+7eoV1y9VarH2MH+o76eRqVj",
    "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgl94ry6BtXb8OpBqn9Tn7t6hXXL1VqsfYwf6jvp5GpWMAAAANa2V5cGFpci1hZ2VudAAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQyNTUxOQAAAEDHeoxm+J4J7tM5mHfcp1lsuA5r/gRpR92NtDliayoG17ieweLxgYYU67eQilLIr7QV0DQ4DwwQrmwhPQ39kPcF",
);
/// A key, and its signature.
const P256: (&str, &str) = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBP/SA19zPnqQuRILxwPlRaMuhiG7ZQ7dMoQRbG6aPoGFO2TmTE4xm4EVWkq0f7E8UbRIh7Wy2FAMghRy7WqkjaI=",
    "U1NIU0lHAAAAAQAAAGgAAAATZWNkc2Etc2hhMi1uaXN0cDI1NgAAAAhuaXN0cDI1NgAAAEEE/9IDX3M+epC5EgvHA+VFoy6GIbtlDt0yhBFsbpo+gYU7ZOZMTjGbgRVaSrR/sTxRtEiHtbLYUAyCFHLtaqSNogAAAA1rZXlwYWlyLWFnZW50AAAAAAAAAAZzaGE1MTIAAABkAAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAABJAAAAIAhHbQ6tr7U6twYOSsyutaVelQwgK4w9CxrrGvIrlsUaAAAAIQD3t7JYPNulI+FoOy7X3w5bBV4UspWOKbyo89Q8Txi35g==",
);
/// A key, and its signature.
const P384: (&str, &str) = (
    "ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBOmrph7pIP1z1NDpXg9rJenLz8SupCe6LnCKRaU9u15BdsNLLQ0tYHIvThHfpF5pGYlqTZq+c+qqmMCAXFL4gq5kwa53mnnMMA6v6yK8zltke18p9w1LuQtMVGCg6ScO5w==",
    "U1NIU0lHAAAAAQAAAIgAAAATZWNkc2Etc2hhMi1uaXN0cDM4NAAAAAhuaXN0cDM4NAAAAGEE6aumHukg/XPU0OleD2sl6cvPxK6kJ7oucIpFpT27XkF2w0stDS1gci9OEd+kXmkZiWpNmr5z6qqYwIBcUviCrmTBrneaecwwDq/rIrzOW2R7Xyn3DUu5C0xUYKDpJw7nAAAADWtleXBhaXItYWdlbnQAAAAAAAAABnNoYTUxMgAAAIQAAAATZWNkc2Etc2hhMi1uaXN0cDM4NAAAAGkAAAAwX4PBOdUDTMUdJblJe9JDrNXS3BsVO077dLeYXnUzN2+oPMw4y3exGNxl0JLPw2tFAAAAMQCkIGh8tLsbIF/+TaKUkDxz3bmZmCEba/X9nPPDiiawRyElR05sX3pelAd9sZTea7c=",
);
/// A key, and its signature.
const P521: (&str, &str) = (
    "ecdsa-sha2-nistp521 AAAAE2VjZHNhLXNoYTItbmlzdHA1MjEAAAAIbmlzdHA1MjEAAACFBACebclv08STqq0gW2KOJMm0TGbUJhjW8p2vFyaejsIXGruTJSikBvhUYgLXULx3lkMOkBi/1QhCUJin7euNRtQ5TQHf/+ujw+dym+rRw0dBg54qWv3YAU1mYK7DWzI6nML+ZinllV7A/4laIimjXnE6acWiCeJZIJ76/8A39yT5FrbXmw==",
    "U1NIU0lHAAAAAQAAAKwAAAATZWNkc2Etc2hhMi1uaXN0cDUyMQAAAAhuaXN0cDUyMQAAAIUEAJ5tyW/TxJOqrSBbYo4kybRMZtQmGNbyna8XJp6Owhcau5MlKKQG+FRiAtdQvHeWQw6QGL/VCEJQmKft641G1DlNAd//66PD53Kb6tHDR0GDnipa/dgBTWZgrsNbMjqcwv5mKeWVXsD/iVoiKaNecTppxaIJ4lkgnvr/wDf3JPkWttebAAAADWtleXBhaXItYWdlbnQAAAAAAAAABnNoYTUxMgAAAKYAAAATZWNkc2Etc2hhMi1uaXN0cDUyMQAAAIsAAABBIhla2ubmpdzuY347WBoB76pnwre5S0ZIetqg1tULy+nqZYb4Yq2ePSu2pR4OZd6BWCfGZcTDTXDSJFKQPlfJg7MAAABCAMpxjDbr/hhMDxvq/9j3F81fy/42jCAb6BXLARlsArfiIz0/oZ7D9rjDa4P3J1TwFFyBXGGkLh6lOZPzMz3xUFQc",
);
/// A key, and its signature.
const RSA: (&str, &str) = (
    "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCxBAwF9ZLYDpXGO2eet6Q3ZOlkCI1ut8HtIp2GBCDysASFlA3NdevwJ+SOc/I16tBoX+bja3PFTXQ8wAASIWCO0/v/hZ4exS2g52Rv5UA531+Zh6zdbRntMwCXDhV5kiaQxiDc+TP7BhYVgWzzqgWw53+f0WgnVySarN+pzg/phEYvPfBiEojfPH9t++3NrbNwh0/9BwBb8kbFxoUZYZFakrgDV1J1em9J1MVPTxQIbd/4d7NeXdWJSgkqTUqhWp0A+T+/ETLiMucxUh4t5DJnDxHQmngJCLvXbCSIL0TKfCfbnm5k0H9j9WPezzN+BKSffhO7t/9PWUUqfxLxiSE/",
    "U1NIU0lHAAAAAQAAARcAAAAHc3NoLXJzYQAAAAMBAAEAAAEBALEEDAX1ktgOlcY7Z563pDdk6WQIjW63we0inYYEIPKwBIWUDc116/An5I5z8jXq0Ghf5uNrc8VNdDzAABIhYI7T+/+Fnh7FLaDnZG/lQDnfX5mHrN1tGe0zAJcOFXmSJpDGINz5M/sGFhWBbPOqBbDnf5/RaCdXJJqs36nOD+mERi898GISiN88f2377c2ts3CHT/0HAFvyRsXGhRlhkVqSuANXUnV6b0nUxU9PFAht3/h3s15d1YlKCSpNSqFanQD5P78RMuIy5zFSHi3kMmcPEdCaeAkIu9dsJIgvRMp8J9uebmTQf2P1Y97PM34EpJ9+E7u3/09ZRSp/EvGJIT8AAAANa2V5cGFpci1hZ2VudAAAAAAAAAAGc2hhNTEyAAABFAAAAAxyc2Etc2hhMi01MTIAAAEAFr068Um4/U03A41B3DoL/tBP88hmAoPG2hxBrTFpue1ASP2KM3chrA/OiQmuUotf3ErpPxnFD6w5rPMXxmU1TcQ7y3J79s0Je2cvInc8/NdODBhYnQpI9vOUDXhIw+lNTz58cXjZg5tytXQOZmBdYWczU8t0WAlyqFYtTnhuK5Qy6yqXZ+zWDHxgXnqGGJL47I0E47zp1mWfI/YOcl/YVulkhzDhbMr589zy5w4IrDfZ0fWOY8xCXhF9VkRLEdxmxrhUr+1SccwwlFUsh58YpHJG6WX7EZ0ybzCn34vHdZw72JgwUKFmtpYpx+1wQphikH3mtWfgrssZ67uehVkbdQ==",
);
/// A signature by the same key with `-O hashalg=sha256`, and in the namespace `file`.
const ED25519_SHA256: &str = "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgl94ry6BtXb8OpBqn9Tn7t6hXXL1VqsfYwf6jvp5GpWMAAAANa2V5cGFpci1hZ2VudAAAAAAAAAAGc2hhMjU2AAAAUwAAAAtzc2gtZWQyNTUxOQAAAEA90NQeGaFajOLWN5dXrNm3LRH5f6S69FJRfu/mq6Ki6dsP+0PnlzAmnmsAbEstZpY1NGf7Lxfl7NN/UVT9fLEE";
const ED25519_FILE: &str = "U1NIU0lHAAAAAQAAADMAAAALc3NoLWVkMjU1MTkAAAAgl94ry6BtXb8OpBqn9Tn7t6hXXL1VqsfYwf6jvp5GpWMAAAAEZmlsZQAAAAAAAAAGc2hhNTEyAAAAUwAAAAtzc2gtZWQyNTUxOQAAAEDHS9jDBPyuaSMY8xKNhP8+wAZGJJxgCrtmGpSyALz0gS/N9UYCEZGFO+RvwLTqGrQpFgC61iM1OVhFbDeJQloD";
/// A signature by a certificate of the P-256 key. The Ed25519 key is its authority.
const CERTIFICATE: &str = "U1NIU0lHAAAAAQAAAecAAAAoZWNkc2Etc2hhMi1uaXN0cDI1Ni1jZXJ0LXYwMUBvcGVuc3NoLmNvbQAAACBKoJZLPYMmQvq0yxKwAh214wBqNBd7vqVLgSxjRRjBMwAAAAhuaXN0cDI1NgAAAEEE/9IDX3M+epC5EgvHA+VFoy6GIbtlDt0yhBFsbpo+gYU7ZOZMTjGbgRVaSrR/sTxRtEiHtbLYUAyCFHLtaqSNogAAAAAAAAAAAAAAAQAAAAF4AAAABQAAAAF5AAAAAGsKuRwAAAAAbOqbhgAAAAAAAACCAAAAFXBlcm1pdC1YMTEtZm9yd2FyZGluZwAAAAAAAAAXcGVybWl0LWFnZW50LWZvcndhcmRpbmcAAAAAAAAAFnBlcm1pdC1wb3J0LWZvcndhcmRpbmcAAAAAAAAACnBlcm1pdC1wdHkAAAAAAAAADnBlcm1pdC11c2VyLXJjAAAAAAAAAAAAAAAzAAAAC3NzaC1lZDI1NTE5AAAAIJfeK8ugbV2/DqQap/U5+7eoV1y9VarH2MH+o76eRqVjAAAAUwAAAAtzc2gtZWQyNTUxOQAAAEAfK+ODDI4cw8DmTMdm4vo23HbGHdKEpp8KNk8eWUY2/J1uT3JIClzRnmE9H+y0yxbpeULBxBknQbWdADJWBIgMAAAADWtleXBhaXItYWdlbnQAAAAAAAAABnNoYTUxMgAAAGMAAAATZWNkc2Etc2hhMi1uaXN0cDI1NgAAAEgAAAAgHCMobJcK68e+ZfYettrwZ02RIRGAxywc+XehhymUDT0AAAAgUSwetpQDsu/qw4bfcI3Trn3kahmT2PLgZ4FHXp6Smus=";

fn to_armor(blob: &str) -> String {
    format!("{ARMOR_BEGIN}\n{blob}\n{ARMOR_END}\n")
}

fn verify(payload: &[u8], signature: &str, signers: &str, now: Option<i64>) -> SignatureCheck {
    let signers =
        AllowedSigners::parse(signers.as_bytes(), Path::new("/s"), &LocalTimeZone::from_localtime(None))
            .unwrap();
    let now = now.map(|seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap());
    Envelope { payload: payload.to_vec(), signature: signature.to_owned() }.verify_signature(&signers, now)
}

fn verify_for_key(signature: &str, key: &str) -> SignatureCheck {
    verify(PAYLOAD, &to_armor(signature), &format!("* {key}\n"), None)
}

#[track_caller]
fn assert_invalid(verdict: SignatureCheck, because: &str) {
    assert!(
        matches!(&verdict, SignatureCheck::Invalid(why) if why.contains(because)),
        "{because}: {verdict:?}"
    );
}

#[test]
fn signature_by_ssh_keygen_is_valid() {
    for (key, signature) in [ED25519, P256, P384, P521] {
        assert_eq!(verify_for_key(signature, key), SignatureCheck::Valid, "{key}");
    }
    assert_eq!(verify_for_key(ED25519_SHA256, ED25519.0), SignatureCheck::Valid);
}

#[test]
fn armor_line_length_is_free_and_damage_is_refused() {
    let (key, blob) = ED25519;
    let lines = |width: usize, end: &str| {
        let lines: Vec<&str> =
            blob.as_bytes().chunks(width).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("{ARMOR_BEGIN}{end}{}{end}{ARMOR_END}", lines.join(end))
    };
    for armour in [lines(70, "\n"), lines(64, "\r\n"), lines(76, "\n") + "\n\n", lines(1000, "\n")] {
        assert_eq!(verify(PAYLOAD, &armour, &format!("* {key}"), None), SignatureCheck::Valid, "{armour}");
    }
    for spoiled in [
        String::new(),
        blob.to_owned(),
        to_armor(""),
        to_armor(&blob[1..]),
        to_armor(&blob[4..]),
        to_armor(&format!("{blob}AAAA")),
        to_armor(blob).replace("BEGIN", "begin"),
        to_armor(blob) + "x",
        to_armor(blob) + &to_armor(blob),
    ] {
        assert_invalid(verify(PAYLOAD, &spoiled, &format!("* {key}"), None), "no SSH signature");
    }
}

/// KP-3.38.
#[test]
fn signature_with_any_flipped_bit_is_invalid() {
    let flip = |bytes: &[u8], bit: usize| {
        let mut bytes = bytes.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    };
    for (key, signature) in [ED25519, P256] {
        let signers = format!("* {key}");
        for bit in 0..PAYLOAD.len() * 8 {
            let verdict = verify(&flip(PAYLOAD, bit), &to_armor(signature), &signers, None);
            assert_invalid(verdict, "not a signature of these bytes");
        }
        let blob = Base64::decode_vec(signature).unwrap();
        for bit in 0..blob.len() * 8 {
            let spoiled = Base64::encode_string(&flip(&blob, bit));
            let verdict = verify(PAYLOAD, &to_armor(&spoiled), &signers, None);
            assert_ne!(verdict, SignatureCheck::Valid, "bit {bit} of {}: {blob:?}", blob.len() * 8);
        }
        let armour = to_armor(signature).into_bytes();
        for bit in 0..armour.len() * 8 {
            let Ok(spoiled) = String::from_utf8(flip(&armour, bit)) else { continue };
            // The positions of line ends do not matter, and blanks are not part of the signed bytes.
            if SshsigParts::parse_armored(&spoiled) != SshsigParts::parse_armored(&to_armor(signature)) {
                assert_invalid(verify(PAYLOAD, &spoiled, &signers, None), "");
            }
        }
    }
}

#[test]
fn signature_of_unlisted_key_or_namespace_is_invalid() {
    assert_invalid(verify_for_key(ED25519.1, P256.0), "not listed in /s");
    assert_invalid(verify_for_key(ED25519_FILE, ED25519.0), "another namespace");
    assert_invalid(verify_for_key(RSA.1, RSA.0), "not listed");
    for signers in [P256.0, ED25519.0] {
        assert_invalid(verify_for_key(CERTIFICATE, signers), "not listed");
        assert_invalid(verify_for_key(CERTIFICATE, &format!("cert-authority {signers}")), "not listed");
    }
    assert_invalid(verify(PAYLOAD, &to_armor(ED25519.1), "", None), "not listed");
}

/// KP-3.39.
#[test]
fn signer_outside_validity_or_namespace_is_refused() {
    let (key, signature) = ED25519;
    let signature = to_armor(signature);
    let at_2030 = Some(1_893_456_000);
    let limited = |options: &str| format!("# a comment\n* {options} {key}\n");
    for (options, now, verdict) in [
        ("valid-after=\"20290101Z\"", at_2030, "good"),
        ("valid-after=\"20290101Z\"", None, "time"),
        ("valid-after=\"20310101Z\"", at_2030, "not sign yet (valid-after), /s line 2"),
        ("valid-before=\"20290101Z\"", at_2030, "not sign any more (valid-before), /s line 2"),
        ("namespaces=\"git\"", at_2030, "other namespaces"),
        ("namespaces=\"git\",valid-after=\"20290101Z\"", None, "other namespaces"),
    ] {
        let judged = verify(PAYLOAD, &signature, &limited(options), now);
        match verdict {
            "good" => assert_eq!(judged, SignatureCheck::Valid),
            "time" => assert_eq!(judged, SignatureCheck::TimeNeeded),
            because => assert_invalid(judged, because),
        }
        let also = format!("{}* {key}\n", limited(options));
        assert_eq!(verify(PAYLOAD, &signature, &also, now), SignatureCheck::Valid, "another line lets him");
    }
    // The time matters only for a signature that matches the bytes.
    let limited = limited("valid-after=\"20290101Z\"");
    assert_invalid(verify(b"{}", &signature, &limited, None), "not a signature of these bytes");
}

#[test]
fn signature_parser_accepts_any_bytes() {
    use proptest::prelude::*;
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
        let blob = [b"SSHSIG\0\0\0\x01".as_slice(), &bytes].concat();
        assert_invalid(verify_for_key(&Base64::encode_string(&blob), ED25519.0), "");
    });
}
