//! `/metrics` as a scraper reads it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::json;
use support::text_format::Scrape;
use support::{REGION, Server, create_temp_dir, http, result_json, send_request, write_temp_file};

const LONG_POLL_PATH: &str = "/i-1/metadata/latest/keypair/command?wait=300";

fn start_with_one_instance() -> Server {
    let server = Server::start(&["--attach-wait", "0", "--instance", "i-1"]);
    server.import("k", 1).result();
    server
}

#[track_caller]
fn scrape_metrics(server: &Server) -> Scrape {
    let response = server.call_api("GET", "/metrics", "");
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4"));
    Scrape::parse(&response.body).unwrap()
}

/// Asserts the values of some series.
#[track_caller]
fn assert_series_values(scrape: &Scrape, expected: &[(&str, f64)]) {
    for (series, value) in expected {
        assert_eq!(scrape.value(series), Some(*value), "{series}");
    }
}

/// Waits until a series has this value.
#[track_caller]
fn wait_for_series_value(server: &Server, series: &str, value: f64) {
    let start = Instant::now();
    while scrape_metrics(server).value(series) != Some(value) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "{series} is not {value}: {:?}",
            scrape_metrics(server)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// KP-9.13.
#[test]
fn metrics_with_few_labels_start_at_zero() {
    let server = Server::start(&["--instance", "i-1"]);
    let scrape = scrape_metrics(&server);
    let mut expected = vec!["keypair_waiting_polls".to_owned(), "keypair_reports_total".to_owned()];
    for answer in ["command", "nothing", "ended", "failed"] {
        expected.push(format!("keypair_polls_total{{answer=\"{answer}\"}}"));
    }
    for action in ["attach", "detach", "setPasswordAuth"] {
        for name in ["commands_queued_total", "commands_handed_out_total", "command_seconds_sum"] {
            expected.push(format!("keypair_{name}{{action=\"{action}\"}}"));
        }
        expected.push(format!("keypair_command_seconds_count{{action=\"{action}\"}}"));
        for le in ["0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "300", "3600", "+Inf"] {
            expected.push(format!("keypair_command_seconds_bucket{{action=\"{action}\",le=\"{le}\"}}"));
        }
    }
    expected.sort();
    let shown: Vec<(&str, f64)> = scrape.iter().collect();
    let expected: Vec<(&str, f64)> = expected.iter().map(|series| (series.as_str(), 0.0)).collect();
    assert_eq!(shown, expected);
}

#[test]
fn metrics_endpoint_allows_only_get_and_head() {
    let server = start_with_one_instance();
    let mut head = String::new();
    send_request(&server.api, "HEAD", "/metrics", "").read_to_string(&mut head).unwrap();
    let is_head = head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n");
    assert!(is_head && head.contains("content-type: text/plain; version=0.0.4\r\n"), "{head}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let response = server.call_api(method, "/metrics", "");
        response.assert_error(405, "METHOD_NOT_ALLOWED", "this path does not know this method");
        assert_eq!(response.header("allow"), Some("GET,HEAD"), "{method}");
    }
    for path in ["/metrics/", "/metrics/more", "/v1/metrics", "/metrics:attach"] {
        server.call_api("GET", path, "").assert_error(404, "NOT_FOUND", "no such path here");
    }
}

/// KP-9.9.
#[test]
fn metrics_endpoint_needs_no_signature() {
    let keys = write_temp_file("[[access_key]]\nid = 'AK'\nsecret = 'hidden'\n");
    let server = Server::start(&["--instance", "i-1", "--access-keys", &keys]);
    assert_series_values(&scrape_metrics(&server), &[("keypair_waiting_polls", 0.0)]);
    let lack = "lack of header authorization[gw]";
    server.call_api("GET", &format!("{REGION}/keypairs"), "").assert_error(401, "ACCESS_ERROR", lack);
}

/// KP-9.13.
#[test]
fn metrics_are_not_served_to_guests() {
    let server = start_with_one_instance();
    let host = server.guest("i-1").host;
    for path in ["/metrics", "/i-1/metrics", "/metadata/latest/metrics", "/i-1/metadata/latest/metrics"] {
        assert_eq!(http(&host, "GET", path, "").status, 404, "{path}");
    }
}

#[test]
fn polls_are_counted_while_they_wait_and_once_they_are_answered() {
    let server = start_with_one_instance();
    let guest = server.guest("i-1");
    let waiting = "keypair_waiting_polls";
    let first = send_request(&guest.host, "GET", LONG_POLL_PATH, "");
    wait_for_series_value(&server, waiting, 1.0);
    let second = send_request(&guest.host, "GET", LONG_POLL_PATH, "");
    wait_for_series_value(&server, waiting, 2.0);
    // A client that disconnects no longer waits, and its poll does not count as answered.
    drop((first, second));
    wait_for_series_value(&server, waiting, 0.0);
    assert_eq!(guest.get("/keypair/command?wait=1").status, 204);
    assert_eq!(guest.get("/keypair/command").status, 204);
    // Neither of these requests is a valid poll of a known instance, so neither is counted.
    assert_eq!(guest.get("/keypair/command?wait=soon").status, 400);
    assert_eq!(http(&guest.host, "GET", "/i-2/metadata/latest/keypair/command", "").status, 404);
    let third = send_request(&guest.host, "GET", LONG_POLL_PATH, "");
    wait_for_series_value(&server, waiting, 1.0);
    server.attach("k", &["i-1"], "no").result();
    assert_eq!(support::read_response(third).unwrap().status, 200);
    assert_series_values(
        &scrape_metrics(&server),
        &[
            (waiting, 0.0),
            (r#"keypair_polls_total{answer="command"}"#, 1.0),
            (r#"keypair_polls_total{answer="nothing"}"#, 2.0),
            (r#"keypair_polls_total{answer="ended"}"#, 0.0),
            (r#"keypair_polls_total{answer="failed"}"#, 0.0),
        ],
    );
}

#[test]
fn command_duration_is_measured_from_queueing_to_result() {
    let server = start_with_one_instance();
    let guest = server.guest("i-1");
    server.attach("k", &["i-1"], "no").result();
    server.attach("k", &["i-1"], "no").result();
    let command = guest.poll(0);
    assert_eq!(guest.poll(0), command);
    // The result is stored at least 60 ms after the queueing.
    std::thread::sleep(Duration::from_millis(60));
    for _ in 0..2 {
        assert_eq!(guest.put_result(&command, "succeeded").status, 204);
    }
    assert_eq!(guest.put_result(&command, "failed").status, 409);
    let counted = scrape_metrics(&server);
    assert_series_values(
        &counted,
        &[
            (r#"keypair_commands_queued_total{action="attach"}"#, 1.0),
            (r#"keypair_commands_handed_out_total{action="attach"}"#, 2.0),
            (r#"keypair_results_total{action="attach",code="OK",reason="",status="succeeded"}"#, 1.0),
            (r#"keypair_command_seconds_count{action="attach"}"#, 1.0),
            (r#"keypair_command_seconds_bucket{action="attach",le="0.05"}"#, 0.0),
            (r#"keypair_command_seconds_bucket{action="attach",le="3600"}"#, 1.0),
            (r#"keypair_command_seconds_count{action="detach"}"#, 0.0),
        ],
    );
    let sum = counted.value(r#"keypair_command_seconds_sum{action="attach"}"#).unwrap();
    assert!((0.06..60.0).contains(&sum), "{sum}");
}

/// KP-9.13.
#[test]
fn result_labels_never_contain_guest_text() {
    let server = start_with_one_instance();
    let guest = server.guest("i-1");
    server.detach("k", &["i-1"]).result();
    let path = format!("{REGION}/instances/i-1:modifyInstancePassword");
    server.call_api("POST", &path, r#"{"password":"Correct-horse1"}"#).result();
    // The guest's results name `attach` as the action of both commands.
    assert_eq!(guest.put_result(&guest.poll(0), "failed").status, 204);
    let reset = guest.poll(0);
    let id = reset["commandId"].as_str().unwrap();
    let mut made_up = result_json(id, "i-nobody", "failed");
    made_up["reason"] = json!("MADE_UP");
    assert_eq!(guest.put(&format!("/keypair/results/{id}"), &made_up.to_string()).status, 400);
    made_up["reason"] = json!("IO_ERROR");
    made_up["code"] = json!("INTERNAL");
    assert_eq!(guest.put(&format!("/keypair/results/{id}"), &made_up.to_string()).status, 204);
    for body in [r#"{"agentVersion":"made-up"}"#, "{}"] {
        assert_eq!(guest.put("/keypair/agent", body).status, 204);
    }
    assert_eq!(guest.put("/keypair/agent", "[]").status, 400);
    assert_series_values(
        &scrape_metrics(&server),
        &[
            (r#"keypair_commands_queued_total{action="detach"}"#, 1.0),
            (r#"keypair_commands_queued_total{action="setPasswordAuth"}"#, 1.0),
            (
                r#"keypair_results_total{action="detach",code="FAILED_PRECONDITION",reason="LOCKOUT_GUARD",status="failed"}"#,
                1.0,
            ),
            (
                r#"keypair_results_total{action="setPasswordAuth",code="INTERNAL",reason="IO_ERROR",status="failed"}"#,
                1.0,
            ),
            ("keypair_reports_total", 2.0),
        ],
    );
    let text = server.call_api("GET", "/metrics", "").body;
    for word in ["i-1", "i-nobody", "made-up", "MADE_UP", "root", id, "action=\"attach\",code"] {
        assert!(!text.contains(word), "{word} is in:\n{text}");
    }
}

#[test]
fn command_queued_by_other_server_is_timed() {
    let store = format!("sqlite:{}", create_temp_dir("metrics").join("store.db").display());
    let start = || Server::start(&["--attach-wait", "0", "--instance", "i-1", "--store", &store]);
    let first = start();
    first.import("k", 1).result();
    first.attach("k", &["i-1"], "no").result();
    first.stop_with_signal("TERM");
    let second = start();
    let guest = second.guest("i-1");
    assert_eq!(guest.put_result(&guest.poll(0), "succeeded").status, 204);
    let counted = scrape_metrics(&second);
    assert_series_values(
        &counted,
        &[
            (r#"keypair_commands_queued_total{action="attach"}"#, 0.0),
            (r#"keypair_commands_handed_out_total{action="attach"}"#, 1.0),
            (r#"keypair_command_seconds_count{action="attach"}"#, 1.0),
        ],
    );
    assert!(counted.value(r#"keypair_command_seconds_sum{action="attach"}"#).unwrap() > 0.0);
}

#[test]
fn scrape_parser_rejects_malformed_text() {
    let good = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{b=\"c\\\"\",d=\"\"} 1\na_total{b=\"e\",d=\"\"} 2\n\
                # HELP h_s Of h.\n# TYPE h_s histogram\nh_s_bucket{le=\"1\"} 1\nh_s_bucket{le=\"+Inf\"} 2\nh_s_sum 3.5\nh_s_count 2\n";
    assert_eq!(Scrape::parse(good).unwrap().value(r#"a_total{b="e",d=""}"#), Some(2.0));
    for (part, instead) in [
        ("h_s_count 2\n", "h_s_count 2"),
        ("h_s_count 2\n", "h_s_count 3\n"),
        ("h_s_count 2\n", ""),
        ("h_s_sum 3.5\n", ""),
        ("{le=\"1\"} 1", "{le=\"1\"} 3"),
        ("h_s_bucket{le=\"+Inf\"} 2\n", ""),
        ("# HELP a_total Of a.\n", ""),
        ("# TYPE a_total counter\n", ""),
        ("a_total counter", "a_total number"),
        ("# HELP h_s Of h.\n# TYPE h_s histogram", "# HELP a_total Of a.\n# TYPE a_total counter"),
        ("b=\"e\"", "b=\"c\\\"\""),
        ("b=\"e\"", "b=\"\\e\""),
        ("b=\"e\"", "b=e"),
        ("b=\"e\"", "1=\"e\""),
        ("b=\"e\",", "b=\"e\""),
        ("} 2\n#", "} two\n#"),
        ("} 2\n#", "} 2 1700000000\n#"),
        ("} 2\n#", "}2\n#"),
        ("} 2\n#", "} -2\n#"),
    ] {
        assert!(good.contains(part));
        let bad = good.replacen(part, instead, 1);
        assert!(Scrape::parse(&bad).is_err(), "{bad}");
    }
}
