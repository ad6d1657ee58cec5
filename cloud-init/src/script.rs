//! The text of user-data: the parts in `parts/`, filled in.

use std::fmt::Write as _;

use tpi_proto::machine::MachineConfig;
use url::Url;

use crate::{AgentSource, Bootstrap, RenderError, check};

const ARM: &str = include_str!("parts/arm.sh");
const START: &str = include_str!("parts/start.sh");
const INSTALL: &str = include_str!("parts/install.sh");
const FETCH: &str = include_str!("parts/fetch.py");
/// An agent that gave its machine back has switched it off; this makes sure. (`SuccessAction=` would be shorter, but
/// systemd before 254 also takes it on the way to a restart.)
const SUCCESS: &str = concat!(
    r#"ExecStopPost=/bin/sh -c '[ "$$SERVICE_RESULT" != success ] || "#,
    "systemctl --no-block start tpi-power-off.service'\n"
);
/// Where AWS's metadata service is found from every instance.
const METADATA: &str = "http://169.254.169.254";

pub(crate) fn user_data(bootstrap: &Bootstrap) -> Result<String, RenderError> {
    check::bootstrap(bootstrap)?;
    let power_off = bootstrap.power_off;
    let arm = fill(
        ARM,
        &[
            ("AT", &power_off.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()),
            ("AT_SECONDS", &power_off.at.as_second().to_string()),
            ("AFTER_BOOT", &power_off.after_boot_seconds.to_string()),
        ],
    );
    let success = if bootstrap.config.power_off { SUCCESS } else { "" };
    let start = fill(
        START,
        &[
            ("CONFIG", &json(&bootstrap.config)?),
            ("INSTALL", install(bootstrap).trim_end()),
            ("FETCH", FETCH.trim_end()),
            ("SUCCESS", success),
        ],
    );
    let task = &bootstrap.config.task;
    Ok(format!("#cloud-config\n# A machine of {task}.\nbootcmd:\n{}runcmd:\n{}", item(&arm), item(&start)))
}

fn install(bootstrap: &Bootstrap) -> String {
    let AgentSource::S3 { bucket, key, region, endpoint, metadata } = &bootstrap.agent;
    let address = |url: &Url| url.as_str().trim_end_matches('/').to_owned();
    let url = match endpoint {
        Some(endpoint) => format!("{}/{bucket}/{key}", address(endpoint)),
        None => {
            let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            // A bucket with dots fits no certificate.
            if bucket.contains('.') {
                format!("https://s3.{region}.{domain}/{bucket}/{key}")
            } else {
                format!("https://{bucket}.s3.{region}.{domain}/{key}")
            }
        }
    };
    let metadata = metadata.as_ref().map_or_else(|| METADATA.to_owned(), address);
    fill(
        INSTALL,
        &[("REGION", region), ("URL", &url), ("METADATA", &metadata), ("SHA256", &bootstrap.agent_sha256)],
    )
}

/// Each `@NAME@` of a name that has a value is replaced, in the order in which they are found, so no value is read as a
/// template; any other `@` stays.
fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('@') {
        filled.push_str(before);
        let found = values
            .iter()
            .find_map(|(name, value)| Some((value, after.strip_prefix(name)?.strip_prefix('@')?)));
        rest = match found {
            Some((value, behind)) => {
                filled.push_str(value);
                behind
            }
            None => {
                filled.push('@');
                after
            }
        };
    }
    filled.push_str(rest);
    filled
}

/// One command as a literal block, which YAML takes as it is.
fn item(script: &str) -> String {
    let mut block = String::from("  - |\n");
    for line in script.lines() {
        if !line.is_empty() {
            block.push_str("    ");
            block.push_str(line);
        }
        block.push('\n');
    }
    block
}

/// In one line of printable ASCII, so that it fits in a here-document and in YAML whatever it says.
fn json<Machine: serde::Serialize>(config: &MachineConfig<Machine>) -> Result<String, RenderError> {
    let text = serde_json::to_string(config).map_err(RenderError::Config)?;
    let mut ascii = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_control() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    Ok(ascii)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_templates() {
        assert_eq!(fill("a @X@ b @Y@ c", &[("X", "@Y@"), ("Y", "1@")]), "a @Y@ b 1@ c");
        assert_eq!(fill("@X@", &[("X", "")]), "");
    }

    #[test]
    fn blocks_keep_their_lines() {
        assert_eq!(item("a\n\n  b\n"), "  - |\n    a\n\n      b\n");
    }

    #[test]
    fn only_names_with_values_are_replaced() {
        let values = [("NAME", "a@NAME@b"), ("OTHER", "c")];
        assert_eq!(fill(r#"x @NAME@ "$@" @OTHER@ @no@ y@"#, &values), r#"x a@NAME@b "$@" c @no@ y@"#);
    }
}
