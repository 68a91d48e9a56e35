//! Tests of which labels prevent sshd from reading, which labels the agent sets, and which lead to a refusal.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

const KEYS: &str = "/home/u/.ssh/authorized_keys";
const RIGHT: &str = "unconfined_u:object_r:ssh_home_t:s0";
const WRONG: &str = "unconfined_u:object_r:user_tmp_t:s0";

fn label(text: &str) -> Label {
    Label::parse(text.as_bytes()).unwrap()
}

/// A component that sshd can read with one label and not with the other.
fn labelled_component(path: &str, is: &str, named: Option<&str>, asked: bool) -> LabelledComponent {
    let access = |text: &str| match (asked, text == RIGHT) {
        (false, _) => Access::Unknown,
        (true, true) => Access::Granted,
        (true, false) => Access::Denied,
    };
    LabelledComponent {
        path: path.into(),
        kind: if path == KEYS { LabelledKind::File } else { LabelledKind::Directory },
        may_be_relabelled: path.starts_with("/home/u"),
        label: Some(label(is)),
        named: named.map(label),
        now: access(is),
        if_named: named.map_or(Access::Unknown, access),
    }
}

fn labels(enforcement: Enforcement, places: Vec<LabelledComponent>) -> Labels {
    Labels {
        enforcement,
        domain: Some(label("system_u:system_r:sshd_t:s0-s0:c0.c1023")),
        home: "/srv/people/u".into(),
        key_files: vec![LabelledPath { file: KEYS.into(), places }],
        config: Vec::new(),
    }
}

fn check_key_labels(
    enforcement: Enforcement,
    places: Vec<LabelledComponent>,
    holds_others: bool,
) -> LabelCheck {
    labels(enforcement, places).check_key_file(Path::new(KEYS), &|_| holds_others)
}

/// The message of a refusal.
fn refusal_message(places: Vec<LabelledComponent>, holds_others: bool) -> String {
    match check_key_labels(Enforcement::Enforcing, places, holds_others) {
        LabelCheck::Unreadable(finding, _) => finding.message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn label_syntax_is_checked() {
    for text in [RIGHT, "a:b:c", "system_u:system_r:sshd_t:s0-s0:c0.c1023"] {
        assert_eq!(label(&format!("{text}\n")), label(text));
        assert_eq!(label(&format!("{text}\0")).as_str(), text);
    }
    let long = format!("a:b:{}", "c".repeat(MAX_LABEL_BYTES));
    for none in ["", "kernel", "a:b", "<<none>>", "a:b:c\na:b:c", "a:b:c d", "a:b:c\u{1b}[31m", &long] {
        assert_eq!(Label::parse(none.as_bytes()), None, "{none}");
    }
    assert_eq!(label(RIGHT).type_name(), "ssh_home_t");
    let typed = label("system_u:object_r:default_t:s0:c1,c2").with_type_of(&label(RIGHT));
    assert_eq!(typed.as_str(), "system_u:object_r:ssh_home_t:s0:c1,c2");
    assert_eq!(label("a:b:c").with_type_of(&label("x:y:z")).as_str(), "a:b:z");
}

#[test]
fn wrong_label_is_fixed_unless_foreign_keys_would_work() {
    let place = || labelled_component(KEYS, WRONG, Some(RIGHT), true);
    let expected =
        Relabel { file: KEYS.into(), place: KEYS.into(), was: Some(label(WRONG)), label: label(RIGHT) };
    assert_eq!(
        check_key_labels(Enforcement::Enforcing, vec![place()], false),
        LabelCheck::Fixable(vec![expected])
    );
    let message = refusal_message(vec![place()], true);
    for part in [KEYS, WRONG, RIGHT, "domain sshd_t", "not the agent's", "restorecon -Rv -F /home/u/.ssh"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn label_of_every_directory_is_checked() {
    for path in ["/home/u/.ssh", "/home/u"] {
        let way = || {
            vec![
                labelled_component(path, WRONG, Some(RIGHT), true),
                labelled_component(KEYS, RIGHT, None, true),
            ]
        };
        let LabelCheck::Fixable(cures) = check_key_labels(Enforcement::Enforcing, way(), false) else {
            panic!("{path}")
        };
        assert_eq!(cures.iter().map(|cure| cure.place.to_str().unwrap()).collect::<Vec<_>>(), [path]);
        // The same applies if the keys of others are in another file behind the same directory.
        let mut both = labels(Enforcement::Enforcing, way());
        let second = PathBuf::from("/home/u/.ssh/authorized_keys2");
        both.key_files.push(LabelledPath { file: second.clone(), places: way() });
        let verdict = both.check_key_file(Path::new(KEYS), &|file| file == second);
        assert!(matches!(verdict, LabelCheck::Unreadable(_, LabelledKind::Directory)), "{verdict:?}");
    }
    // The agent sets no label above the home.
    let message = refusal_message(vec![labelled_component("/home", WRONG, Some(RIGHT), true)], false);
    assert!(
        message.contains("may not search /home: ") && message.contains("restorecon -Rv -F /home"),
        "{message}"
    );
}

#[test]
fn home_unknown_to_policy_is_refused() {
    let place = labelled_component("/srv/people/u", WRONG, Some(WRONG), true);
    let message = refusal_message(vec![LabelledComponent { may_be_relabelled: true, ..place }], false);
    for part in
        ["names no other", "semanage fcontext -a -e /home /srv/people", "restorecon -Rv -F /srv/people/u"]
    {
        assert!(message.contains(part), "{part}: {message}");
    }
    let above = refusal_message(vec![labelled_component("/srv/people", WRONG, Some(WRONG), true)], false);
    assert!(above.contains("-e /home /srv/people, then restorecon -Rv -F /srv/people"), "{above}");
    // The agent does not set a label that is as bad as the present one.
    let other = "unconfined_u:object_r:default_t:s0";
    let message = refusal_message(vec![labelled_component(KEYS, WRONG, Some(other), true)], false);
    assert!(message.contains(other) && message.contains("semanage fcontext -a -t ssh_home_t"), "{message}");
    // The policy names no label.
    let message = refusal_message(vec![labelled_component(KEYS, WRONG, None, true)], false);
    assert!(message.contains("restorecon -Rv -F /home/u/.ssh/authorized_keys"), "{message}");
}

#[test]
fn label_types_are_compared_without_kernel() {
    let same = RIGHT.replace("unconfined_u", "system_u");
    let verdict = check_key_labels(
        Enforcement::Enforcing,
        vec![labelled_component(KEYS, &same, Some(RIGHT), false)],
        true,
    );
    assert_eq!(verdict, LabelCheck::Readable);
    let verdict = check_key_labels(
        Enforcement::Enforcing,
        vec![labelled_component(KEYS, WRONG, Some(RIGHT), false)],
        false,
    );
    assert!(matches!(verdict, LabelCheck::Fixable(_)), "{verdict:?}");
    assert!(refusal_message(vec![labelled_component(KEYS, WRONG, Some(RIGHT), false)], true).contains(RIGHT));
    let message = refusal_message(vec![labelled_component(KEYS, RIGHT, None, false)], false);
    assert!(message.contains("not known") && message.contains("install matchpathcon"), "{message}");
    assert!(!message.contains("sshd_t"), "{message}");
}

#[test]
fn permissive_mode_only_warns() {
    for named in [Some(RIGHT), Some(WRONG), None] {
        let place = labelled_component(KEYS, WRONG, named, true);
        let verdict = check_key_labels(Enforcement::Permissive, vec![place.clone()], false);
        let LabelCheck::Tolerated(warning) = verdict else { panic!("{named:?}") };
        assert_eq!((warning.reason, warning.file.as_deref()), (WarningReason::WrongLabel, Some(KEYS)));
        assert!(warning.message.contains("restorecon"), "{}", warning.message);
        assert_eq!(check_key_labels(Enforcement::Absent, vec![place], false), LabelCheck::Readable);
    }
    let unknown = labelled_component(KEYS, WRONG, None, false);
    assert_eq!(check_key_labels(Enforcement::Permissive, vec![unknown], false), LabelCheck::Readable);
    assert_eq!(
        check_key_labels(Enforcement::Enforcing, vec![labelled_component(KEYS, RIGHT, None, true)], true),
        LabelCheck::Readable
    );
    let nowhere = labels(Enforcement::Enforcing, Vec::new());
    assert_eq!(nowhere.check_key_file(Path::new("/elsewhere"), &|_| true), LabelCheck::Readable);
}

#[test]
fn config_file_labels_are_checked() {
    let drop_in = "/etc/ssh/sshd_config.d/00-keypair-agent.conf";
    let file = |path: &str, is: &str, is_ours| LabelledComponent {
        kind: LabelledKind::File,
        may_be_relabelled: is_ours,
        ..labelled_component(path, is, Some(RIGHT), true)
    };
    let judge = |places: Vec<LabelledComponent>| {
        let ways =
            places.into_iter().map(|place| LabelledPath { file: place.path.clone(), places: vec![place] });
        Labels { config: ways.collect(), ..labels(Enforcement::Enforcing, Vec::new()) }.check_config_files()
    };
    let main = |is| file("/etc/ssh/sshd_config", is, false);
    assert_eq!(judge(vec![main(RIGHT), file(drop_in, RIGHT, true)]), LabelCheck::Readable);
    let LabelCheck::Fixable(cures) = judge(vec![main(RIGHT), file(drop_in, WRONG, true)]) else { panic!() };
    assert_eq!(cures[0].place, Path::new(drop_in));
    let verdict = judge(vec![file(drop_in, WRONG, true), main(WRONG)]);
    assert!(matches!(verdict, LabelCheck::Unreadable(_, LabelledKind::File)), "{verdict:?}");
    let directory = LabelledComponent {
        may_be_relabelled: false,
        ..labelled_component("/etc/ssh/sshd_config.d", WRONG, Some(RIGHT), true)
    };
    assert!(matches!(judge(vec![directory]), LabelCheck::Unreadable(_, LabelledKind::Directory)));
}

#[test]
fn paths_in_remedies_are_shell_quoted() {
    let message =
        refusal_message(vec![labelled_component("/home/it's here", WRONG, Some(RIGHT), true)], false);
    assert!(message.contains(r"restorecon -Rv -F '/home/it'\''s here'"), "{message}");
}
