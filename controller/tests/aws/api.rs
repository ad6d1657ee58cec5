//! The emulator as anybody else would see it: plain requests, none of the product's own code.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

use url::Url;

pub(crate) struct Api {
    pub(crate) endpoint: Url,
    pub(crate) region: String,
}

fn encoded(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

impl Api {
    /// The answer's XML, whatever it says.
    pub(crate) fn ask(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> String {
        let version = match service {
            "ec2" => "2016-11-15",
            "autoscaling" => "2011-01-01",
            "iam" => "2010-05-08",
            other => panic!("no version of {other}"),
        };
        let own = [("Action", action), ("Version", version)];
        let pairs = own.iter().chain(parameters).map(|(name, value)| format!("{name}={}", encoded(value)));
        let body = pairs.collect::<Vec<_>>().join("&");
        let region = if service == "iam" { "us-east-1" } else { &self.region };
        let host = self.endpoint.host_str().unwrap();
        let port = self.endpoint.port_or_known_default().unwrap();
        let mut stream = TcpStream::connect((host, port)).unwrap();
        write!(
            stream,
            "POST / HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{region}/{service}/aws4_request, SignedHeaders=host, Signature=0\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The whole answer of S3, which has to be a success.
    pub(crate) fn s3(&self, method: &str, path: &str) -> String {
        let host = self.endpoint.host_str().unwrap();
        let mut stream = TcpStream::connect((host, self.endpoint.port_or_known_default().unwrap())).unwrap();
        let region = &self.region;
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {host}\r\n\
             Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/{region}/s3/aws4_request, SignedHeaders=host, Signature=0\r\n\
             Content-Length: 0\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.split(' ').nth(1).is_some_and(|code| code.starts_with('2')), "{path}: {answer}");
        answer
    }

    /// The answer of a request that has to succeed.
    pub(crate) fn done(&self, service: &str, action: &str, parameters: &[(&str, &str)]) -> String {
        let answer = self.ask(service, action, parameters);
        assert!(answer.split(' ').nth(1) == Some("200"), "{action}: {answer}");
        answer
    }
}

/// Contents of every element of that name, in order; of elements without children of the same name.
pub(crate) fn texts(xml: &str, element: &str) -> Vec<String> {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    xml.split(&open)
        .skip(1)
        .filter_map(|rest| rest.split_once(&close).map(|(text, _)| text.to_owned()))
        .collect()
}

/// The first one's.
pub(crate) fn text(xml: &str, element: &str) -> String {
    texts(xml, element).into_iter().next().unwrap_or_else(|| panic!("no {element} in {xml}"))
}
