//! Names and tags of everything created, all from the task's identifier, so that what a crash left behind is
//! found again by anybody.

use std::collections::BTreeMap;

use jiff::Timestamp;
use tpi_proto::{
    id::TaskId,
    spec::{CloudName, TaskSpec},
};
use url::Url;

use crate::cloud::{CloudError, CloudErrorKind, Leftovers};

/// Tag that holds the task's identifier. What lacks it is not ours, whatever its name.
pub(super) const TASK_TAG: &str = "tpi:task";
/// Tag with the deadline, in seconds since 1970.
pub(super) const DEADLINE_TAG: &str = "tpi:deadline";
/// Tag with the URL of the store that has the task's record, so that it is found from any computer.
pub(super) const STORE_TAG: &str = "tpi:store";
/// Tag of a machine that `destroy` has ended.
pub(super) const END_TAG: &str = "tpi:end";
/// Value of [`END_TAG`].
pub(super) const END_DESTROYED: &str = "destroyed";
/// Tag of a launch template: fingerprint of all that it is made from.
pub(super) const CONTENT_TAG: &str = "tpi:content";
/// Path of roles and instance profiles, so that they can be listed apart from all others.
pub(super) const IAM_PATH: &str = "/tpi/";
/// Name of the schedule that ends a group.
pub(super) const SCHEDULE: &str = "tpi-deadline";
/// Name of the role's only policy.
pub(super) const ROLE_POLICY: &str = "tpi-task";

/// Longest key and value that all services take.
const TAG_KEY_MAX: usize = 127;
const TAG_VALUE_MAX: usize = 255;
/// AWS allows 50 on a resource; ours and the group's are among them.
const TAGS_MAX: usize = 40;

/// Tags of everything of one task.
///
/// # Errors
/// When a tag of the user cannot be one at AWS.
pub(super) fn tags(
    task: &TaskId,
    spec: &TaskSpec,
    deadline: Timestamp,
    store: &Url,
) -> Result<BTreeMap<String, String>, CloudError> {
    let refuse = |cause: String| CloudError {
        kind: CloudErrorKind::InvalidSpec,
        operation: format!("tagging what belongs to {task}"),
        leftovers: Leftovers::None,
        source: Some(cause.into()),
    };
    if spec.tags.len() > TAGS_MAX {
        return Err(refuse(format!("there are {} tags and at most {TAGS_MAX} fit", spec.tags.len())));
    }
    let mut tags = BTreeMap::new();
    for (key, value) in &spec.tags {
        let reserved = ["aws:", "tpi:"].into_iter().find(|p| key.to_lowercase().starts_with(p));
        if let Some(prefix) = reserved {
            return Err(refuse(format!("the tag {key:?} begins with {prefix:?}, which is reserved")));
        }
        let fits = |text: &str, max: usize| text.chars().count() <= max && text.chars().all(is_tag_char);
        if key.is_empty() || !fits(key, TAG_KEY_MAX) || !fits(value, TAG_VALUE_MAX) {
            return Err(refuse(format!(
                "the tag {key:?} cannot be one: at most {TAG_KEY_MAX} characters, the value at most \
                 {TAG_VALUE_MAX}, of letters, digits, spaces and _ . : / = + - @"
            )));
        }
        let _first = tags.insert(key.clone(), value.clone());
    }
    if !tags.contains_key("Name") {
        let _none = tags.insert("Name".to_owned(), task.to_string());
    }
    tags.extend(own_tags(task, deadline, store));
    Ok(tags)
}

/// Those that are ours; all that roles and profiles have.
pub(super) fn own_tags(task: &TaskId, deadline: Timestamp, store: &Url) -> BTreeMap<String, String> {
    let mut tags = BTreeMap::from([
        (TASK_TAG.to_owned(), task.to_string()),
        (DEADLINE_TAG.to_owned(), deadline.as_second().to_string()),
    ]);
    let url = store.as_str();
    if url.len() <= TAG_VALUE_MAX && url.chars().all(is_tag_char) {
        let _none = tags.insert(STORE_TAG.to_owned(), url.to_owned());
    }
    tags
}

fn is_tag_char(c: char) -> bool {
    c.is_alphanumeric() || " _.:/=+-@".contains(c)
}

/// Which cloud this folder is.
pub(super) const CLOUD: CloudName = CloudName::Aws;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::aws::fixture;

    #[test]
    fn tags_of_the_user_stay_and_ours_win() {
        let want = fixture::want();
        let mut spec = want.spec.clone();
        let _none = spec.tags.insert("Name".to_owned(), "mine".to_owned());
        let tags = tags(&want.task, &spec, want.deadline, &want.store).expect("tags");
        assert_eq!(tags["Name"], "mine");
        assert_eq!(tags[TASK_TAG], want.task.as_str());
        assert_eq!(tags[DEADLINE_TAG], want.deadline.as_second().to_string());
        assert_eq!(tags[STORE_TAG], "s3://bucket/path");
    }

    #[test]
    fn what_cannot_be_a_tag_is_refused() {
        let want = fixture::want();
        for bad in ["aws:x", "TPI:task", "", "a\nb", &"k".repeat(200)] {
            let mut spec = want.spec.clone();
            let _none = spec.tags.insert(bad.to_owned(), "v".to_owned());
            let error = tags(&want.task, &spec, want.deadline, &want.store).expect_err(bad);
            assert_eq!(error.kind, CloudErrorKind::InvalidSpec);
        }
    }
}
