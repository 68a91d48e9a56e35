//! Which labels keep sshd from reading, which are set and which refuse.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

const KEYS: &str = "/home/u/.ssh/authorized_keys";
const RIGHT: &str = "unconfined_u:object_r:ssh_home_t:s0";
const WRONG: &str = "unconfined_u:object_r:user_tmp_t:s0";

fn label(text: &str) -> Label {
    Label::parse(text.as_bytes()).unwrap()
}

/// A place that sshd reads with the one label and does not with the other.
fn place(path: &str, is: &str, named: Option<&str>, asked: bool) -> Place {
    let access = |text: &str| match (asked, text == RIGHT) {
        (false, _) => Access::Unknown,
        (true, true) => Access::Granted,
        (true, false) => Access::Denied,
    };
    Place {
        path: path.into(),
        kind: if path == KEYS { PlaceKind::File } else { PlaceKind::Directory },
        may_be_relabelled: path.starts_with("/home/u"),
        label: Some(label(is)),
        named: named.map(label),
        now: access(is),
        if_named: named.map_or(Access::Unknown, access),
    }
}

fn labels(enforcement: Enforcement, places: Vec<Place>) -> Labels {
    Labels {
        enforcement,
        domain: Some(label("system_u:system_r:sshd_t:s0-s0:c0.c1023")),
        home: "/srv/people/u".into(),
        key_files: vec![LabelledWay { file: KEYS.into(), places }],
        config: Vec::new(),
    }
}

fn judged(enforcement: Enforcement, places: Vec<Place>, holds_others: bool) -> Verdict {
    labels(enforcement, places).judge_key_file(Path::new(KEYS), &|_| holds_others)
}

/// The message of a refusal.
fn refused(places: Vec<Place>, holds_others: bool) -> String {
    match judged(Enforcement::Enforcing, places, holds_others) {
        Verdict::Unreadable(finding, _) => finding.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_a_label() {
    for text in [RIGHT, "a:b:c", "system_u:system_r:sshd_t:s0-s0:c0.c1023"] {
        assert_eq!(label(&format!("{text}\n")), label(text));
        assert_eq!(label(&format!("{text}\0")).as_str(), text);
    }
    let long = format!("a:b:{}", "c".repeat(MAX_LABEL));
    for none in ["", "kernel", "a:b", "<<none>>", "a:b:c\na:b:c", "a:b:c d", "a:b:c\u{1b}[31m", &long] {
        assert_eq!(Label::parse(none.as_bytes()), None, "{none}");
    }
    assert_eq!(label(RIGHT).type_name(), "ssh_home_t");
    let typed = label("system_u:object_r:default_t:s0:c1,c2").with_type_of(&label(RIGHT));
    assert_eq!(typed.as_str(), "system_u:object_r:ssh_home_t:s0:c1,c2");
    assert_eq!(label("a:b:c").with_type_of(&label("x:y:z")).as_str(), "a:b:z");
}

#[test]
fn a_wrong_label_is_set_where_nothing_else_comes_to_let_in() {
    let place = || place(KEYS, WRONG, Some(RIGHT), true);
    let expected =
        Relabel { file: KEYS.into(), place: KEYS.into(), was: Some(label(WRONG)), label: label(RIGHT) };
    assert_eq!(judged(Enforcement::Enforcing, vec![place()], false), Verdict::Curable(vec![expected]));
    let message = refused(vec![place()], true);
    for part in [KEYS, WRONG, RIGHT, "domain sshd_t", "not the agent's", "restorecon -Rv -F /home/u/.ssh"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn every_directory_on_the_way_counts() {
    for path in ["/home/u/.ssh", "/home/u"] {
        let way = || vec![place(path, WRONG, Some(RIGHT), true), place(KEYS, RIGHT, None, true)];
        let Verdict::Curable(cures) = judged(Enforcement::Enforcing, way(), false) else { panic!("{path}") };
        assert_eq!(cures.iter().map(|cure| cure.place.to_str().unwrap()).collect::<Vec<_>>(), [path]);
        // Also where the keys of others stand in another file behind the same directory.
        let mut both = labels(Enforcement::Enforcing, way());
        let second = PathBuf::from("/home/u/.ssh/authorized_keys2");
        both.key_files.push(LabelledWay { file: second.clone(), places: way() });
        let verdict = both.judge_key_file(Path::new(KEYS), &|file| file == second);
        assert!(matches!(verdict, Verdict::Unreadable(_, PlaceKind::Directory)), "{verdict:?}");
    }
    // Above the home nothing is set.
    let message = refused(vec![place("/home", WRONG, Some(RIGHT), true)], false);
    assert!(
        message.contains("may not search /home: ") && message.contains("restorecon -Rv -F /home"),
        "{message}"
    );
}

#[test]
fn a_home_that_the_policy_does_not_know_is_refused() {
    let place = place("/srv/people/u", WRONG, Some(WRONG), true);
    let message = refused(vec![Place { may_be_relabelled: true, ..place }], false);
    for part in
        ["names no other", "semanage fcontext -a -e /home /srv/people", "restorecon -Rv -F /srv/people/u"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    let above = refused(vec![self::place("/srv/people", WRONG, Some(WRONG), true)], false);
    assert!(above.contains("-e /home /srv/people, then restorecon -Rv -F /srv/people"), "{above}");
    // A label that is as bad as the present one is not set.
    let other = "unconfined_u:object_r:default_t:s0";
    let message = refused(vec![self::place(KEYS, WRONG, Some(other), true)], false);
    assert!(message.contains(other) && message.contains("semanage fcontext -a -t ssh_home_t"), "{message}");
    // Nothing is named.
    let message = refused(vec![self::place(KEYS, WRONG, None, true)], false);
    assert!(message.contains("restorecon -Rv -F /home/u/.ssh/authorized_keys"), "{message}");
}

#[test]
fn without_the_kernel_types_are_compared() {
    let same = RIGHT.replace("unconfined_u", "system_u");
    let verdict = judged(Enforcement::Enforcing, vec![place(KEYS, &same, Some(RIGHT), false)], true);
    assert_eq!(verdict, Verdict::Readable);
    let verdict = judged(Enforcement::Enforcing, vec![place(KEYS, WRONG, Some(RIGHT), false)], false);
    assert!(matches!(verdict, Verdict::Curable(_)), "{verdict:?}");
    assert!(refused(vec![place(KEYS, WRONG, Some(RIGHT), false)], true).contains(RIGHT));
    let message = refused(vec![place(KEYS, RIGHT, None, false)], false);
    assert!(message.contains("not known") && message.contains("install matchpathcon"), "{message}");
    assert!(!message.contains("sshd_t"), "{message}");
}

#[test]
fn what_does_not_enforce_refuses_nothing() {
    for named in [Some(RIGHT), Some(WRONG), None] {
        let place = place(KEYS, WRONG, named, true);
        let verdict = judged(Enforcement::Permissive, vec![place.clone()], false);
        let Verdict::Tolerated(warning) = verdict else { panic!("{named:?}") };
        assert_eq!((warning.reason, warning.file.as_deref()), (WarningReason::WrongLabel, Some(KEYS)));
        assert!(warning.message.contains("restorecon"), "{}", warning.message);
        assert_eq!(judged(Enforcement::Absent, vec![place], false), Verdict::Readable);
    }
    let unknown = place(KEYS, WRONG, None, false);
    assert_eq!(judged(Enforcement::Permissive, vec![unknown], false), Verdict::Readable);
    assert_eq!(judged(Enforcement::Enforcing, vec![place(KEYS, RIGHT, None, true)], true), Verdict::Readable);
    let nowhere = labels(Enforcement::Enforcing, Vec::new());
    assert_eq!(nowhere.judge_key_file(Path::new("/elsewhere"), &|_| true), Verdict::Readable);
}

#[test]
fn files_of_sshds_configuration() {
    let drop_in = "/etc/ssh/sshd_config.d/00-keypair-agent.conf";
    let file = |path: &str, is: &str, is_ours| Place {
        kind: PlaceKind::File,
        may_be_relabelled: is_ours,
        ..place(path, is, Some(RIGHT), true)
    };
    let judge = |places: Vec<Place>| {
        let ways =
            places.into_iter().map(|place| LabelledWay { file: place.path.clone(), places: vec![place] });
        Labels { config: ways.collect(), ..labels(Enforcement::Enforcing, Vec::new()) }.judge_config()
    };
    let main = |is| file("/etc/ssh/sshd_config", is, false);
    assert_eq!(judge(vec![main(RIGHT), file(drop_in, RIGHT, true)]), Verdict::Readable);
    let Verdict::Curable(cures) = judge(vec![main(RIGHT), file(drop_in, WRONG, true)]) else { panic!() };
    assert_eq!(cures[0].place, Path::new(drop_in));
    let verdict = judge(vec![file(drop_in, WRONG, true), main(WRONG)]);
    assert!(matches!(verdict, Verdict::Unreadable(_, PlaceKind::File)), "{verdict:?}");
    let directory =
        Place { may_be_relabelled: false, ..place("/etc/ssh/sshd_config.d", WRONG, Some(RIGHT), true) };
    assert!(matches!(judge(vec![directory]), Verdict::Unreadable(_, PlaceKind::Directory)));
}

#[test]
fn paths_are_words_of_a_shell() {
    let message = refused(vec![place("/home/it's here", WRONG, Some(RIGHT), true)], false);
    assert!(message.contains(r"restorecon -Rv -F '/home/it'\''s here'"), "{message}");
}
