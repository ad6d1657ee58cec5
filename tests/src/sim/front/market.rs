//! Prices on the spot market and the account's quotas.

use std::collections::BTreeMap;

use anyhow::Result;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{
    ACCOUNT,
    call::Asked,
    form::Form,
    http::Answer,
    refusal::{Refusal, refuse, request_id},
    shared::Shared,
    xml::Element,
};

/// Code, name and value in vCPUs.
const QUOTAS: &[(&str, &str, f64)] = &[
    ("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 64.0),
    ("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 64.0),
    ("L-DB2E81BA", "Running On-Demand G and VT instances", 64.0),
    ("L-3819A6DF", "All G and VT Spot Instance Requests", 64.0),
    ("L-417A185B", "Running On-Demand P instances", 64.0),
    ("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", 64.0),
    ("L-C4BD4855", "All P5 Spot Instance Requests", 0.0),
    ("L-1945791B", "Running On-Demand Inf instances", 64.0),
    ("L-B5D1601B", "All Inf Spot Instance Requests", 64.0),
    ("L-2C3B7624", "Running On-Demand Trn instances", 8.0),
    ("L-6B0D517C", "All Trn Spot Instance Requests", 8.0),
    ("L-7295265B", "Running On-Demand X instances", 0.0),
    ("L-E3A00192", "All X Spot Instance Requests", 0.0),
    ("L-74FC7D96", "Running On-Demand F instances", 0.0),
    ("L-88CF9481", "All F Spot Instance Requests", 0.0),
    ("L-6E869C2A", "Running On-Demand DL instances", 0.0),
    ("L-85EED4F7", "All DL Spot Instance Requests", 0.0),
];

pub(super) fn quotas() -> BTreeMap<String, f64> {
    QUOTAS.iter().map(|(code, _, value)| ((*code).to_owned(), *value)).collect()
}

/// Virtual processors, as the size in a type's name has them.
fn vcpus(kind: &str) -> f64 {
    let size = kind.split_once('.').map_or("", |(_, size)| size);
    match size {
        "nano" | "micro" | "small" | "medium" | "large" => 2.0,
        "xlarge" => 4.0,
        "metal" => 96.0,
        other => other.strip_suffix("xlarge").and_then(|n| n.parse::<f64>().ok()).map_or(2.0, |n| n * 4.0),
    }
}

/// US dollars per hour of a spot machine: a fixed part of what such machines cost, a little different in each zone.
pub(super) fn usual_price(kind: &str, zone: &str) -> f64 {
    let family = kind.split(['.']).next().unwrap_or_default();
    let of_vcpu = match family.chars().next() {
        Some('p') => 0.12,
        Some('g') => 0.06,
        Some('t') => 0.006,
        Some('r' | 'x') => 0.021,
        _ => 0.016,
    };
    let last = zone.bytes().last().map_or(0.0, |letter| f64::from(letter.saturating_sub(b'a')));
    (vcpus(kind) * of_vcpu * (1.0 + last / 50.0) * 10_000.0).round() / 10_000.0
}

impl Shared {
    pub(super) fn spot_price(&self, kind: &str, zone: &str) -> f64 {
        let state = self.lock();
        let set = state.prices.get(&(kind.to_owned(), zone.to_owned()));
        set.or_else(|| state.prices.get(&(kind.to_owned(), String::new())))
            .copied()
            .unwrap_or_else(|| usual_price(kind, zone))
    }

    /// The current price of each type that is offered, zone by zone.
    pub(super) async fn price_history(&self, asked: &Asked) -> Result<Result<Answer, Refusal>> {
        let form = &asked.form;
        let filters = form.filters();
        let filter = |name: &str| filters.get(name).cloned().unwrap_or_default();
        let products = [form.values("ProductDescription"), filter("product-description")].concat();
        let known = |product: &String| product.starts_with("Linux/UNIX");
        let mut kinds = [form.values("InstanceType"), filter("instance-type")].concat();
        kinds.sort();
        kinds.dedup();
        if kinds.is_empty() {
            // AWS would answer with pages without an end.
            return Ok(refuse(
                "InvalidParameterValue",
                "this simulation wants to be told the instance types",
            ));
        }
        let zones = [
            form.get("AvailabilityZone").map(str::to_owned).into_iter().collect(),
            filter("availability-zone"),
        ];
        let zones = zones.concat();
        let mut query = Form::of([("LocationType", "availability-zone"), ("Filter.1.Name", "instance-type")]);
        for (at, kind) in kinds.iter().enumerate() {
            query.set(&format!("Filter.1.Value.{}", at + 1), kind);
        }
        let offered = self.moto.ask("ec2", &asked.region, "DescribeInstanceTypeOfferings", &query).await?;
        let offered = Element::parse(&offered.text())?;
        // A price holds from when it last changed.
        let since = self.clock.now() - SignedDuration::from_mins(37);
        let mut items: Vec<Element> = Vec::new();
        for item in offered.having("location") {
            let (kind, zone) = (item.at(&["instanceType"]), item.at(&["location"]));
            if !kinds.iter().any(|k| k == kind)
                || !(zones.is_empty() || zones.iter().any(|z| z == zone))
                || !(products.is_empty() || products.iter().any(known))
            {
                continue;
            }
            items.push(
                Element::new("item")
                    .with(Element::text("instanceType", kind))
                    .with(Element::text("productDescription", "Linux/UNIX"))
                    .with(Element::text("spotPrice", format!("{:.6}", self.spot_price(kind, zone))))
                    .with(Element::text("timestamp", whole(since)))
                    .with(Element::text("availabilityZone", zone)),
            );
        }
        let from: usize = form.text("NextToken").parse().unwrap_or(0);
        let most: usize = form.text("MaxResults").parse().unwrap_or(1000).clamp(1, 1000);
        let next = if from + most < items.len() { (from + most).to_string() } else { String::new() };
        let page = items.into_iter().skip(from).take(most);
        let answer = Element::new("DescribeSpotPriceHistoryResponse")
            .with(Element::text("requestId", request_id()))
            .with(Element::new("spotPriceHistorySet").with_all(page))
            .with(Element::text("nextToken", next));
        Ok(Ok(Answer::xml(answer.to_string())))
    }

    /// Service Quotas, for EC2.
    pub(super) fn service_quotas(&self, asked: &Asked) -> Result<Answer, Refusal> {
        if asked.json["ServiceCode"] != "ec2" {
            let words = "The request failed because the specified service does not exist.";
            return Err(Refusal::new(400, "NoSuchResourceException", words));
        }
        let state = self.lock();
        let quota = |code: &str, value: f64| {
            let name = QUOTAS.iter().find(|q| q.0 == code).map_or("", |q| q.1);
            json!({
                "ServiceCode": "ec2",
                "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
                "QuotaArn": format!("arn:aws:servicequotas:{}:{ACCOUNT}:ec2/{code}", asked.region),
                "QuotaCode": code,
                "QuotaName": name,
                "Value": value,
                "Unit": "None",
                "Adjustable": true,
                "GlobalQuota": false,
            })
        };
        let answer = match asked.action.as_str() {
            "GetServiceQuota" => {
                let code = asked.json["QuotaCode"].as_str().unwrap_or_default();
                let Some(value) = state.quotas.get(code) else {
                    let words = "The request failed because the specified quota does not exist.";
                    return Err(Refusal::new(400, "NoSuchResourceException", words));
                };
                json!({ "Quota": quota(code, *value) })
            }
            "ListServiceQuotas" => {
                let from: usize = asked.json["NextToken"].as_str().and_then(|t| t.parse().ok()).unwrap_or(0);
                let most =
                    asked.json["MaxResults"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(100);
                let page: Vec<_> = state
                    .quotas
                    .iter()
                    .skip(from)
                    .take(most)
                    .map(|(code, value)| quota(code, *value))
                    .collect();
                let mut answer = json!({ "Quotas": page });
                if from + most < state.quotas.len() {
                    answer["NextToken"] = json!((from + most).to_string());
                }
                answer
            }
            other => return refuse("UnknownOperationException", format!("no operation {other}")),
        };
        Ok(Answer::new(http::StatusCode::OK, "application/x-amz-json-1.1", answer.to_string()))
    }
}

/// To whole seconds, as AWS writes times.
pub(super) fn whole(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
