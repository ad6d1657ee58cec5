//! The service as it is on the wire; nothing of it goes further than this file.

use bytes::Bytes;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tpi_proto::{
    fault::chain,
    tfplugin_control as control,
    tfplugin5::{self as wire, provider_server},
};

use super::{
    diagnostics,
    plan::Cause,
    private::Private,
    provider::{Left, Provider},
    schema,
    value::{Object, Value, ValueError},
};

/// The provider, as Terraform calls it.
#[derive(Debug)]
pub(super) struct Service(pub(super) Provider);

fn refused(error: &dyn std::error::Error) -> Status {
    Status::invalid_argument(chain(error))
}

fn conform(value: Result<Value, ValueError>) -> Result<Option<Object>, Status> {
    schema::conform(value.map_err(|e| refused(&e))?).map_err(|e| refused(&e))
}

/// An object of the resource; `None` for null.
fn object(value: Option<&wire::DynamicValue>) -> Result<Option<Object>, Status> {
    conform(Value::decode(value))
}

fn known(name: &str) -> Result<(), Status> {
    if name == schema::RESOURCE {
        Ok(())
    } else {
        Err(Status::not_found(format!("there is no resource {name:?}")))
    }
}

fn encode(object: Option<Object>) -> wire::DynamicValue {
    object.map_or(Value::Null, Value::Map).encode()
}

fn private(private: Option<&Private>) -> Bytes {
    private.map(Private::bytes).unwrap_or_default()
}

#[tonic::async_trait]
impl provider_server::Provider for Service {
    async fn get_schema(
        &self,
        _: Request<wire::GetSchemaRequest>,
    ) -> Result<Response<wire::GetSchemaResponse>, Status> {
        Ok(Response::new(schema::schema()))
    }

    async fn prepare_provider_config(
        &self,
        request: Request<wire::PrepareProviderConfigRequest>,
    ) -> Result<Response<wire::PrepareProviderConfigResponse>, Status> {
        let prepared_config = request.into_inner().config;
        Ok(Response::new(wire::PrepareProviderConfigResponse { prepared_config, diagnostics: Vec::new() }))
    }

    async fn validate_resource_type_config(
        &self,
        request: Request<wire::ValidateResourceTypeConfigRequest>,
    ) -> Result<Response<wire::ValidateResourceTypeConfigResponse>, Status> {
        let request = request.into_inner();
        known(&request.type_name)?;
        let diagnostics =
            object(request.config.as_ref())?.map(|config| self.0.validate(&config)).unwrap_or_default();
        Ok(Response::new(wire::ValidateResourceTypeConfigResponse { diagnostics }))
    }

    async fn upgrade_resource_state(
        &self,
        request: Request<wire::UpgradeResourceStateRequest>,
    ) -> Result<Response<wire::UpgradeResourceStateResponse>, Status> {
        let request = request.into_inner();
        known(&request.type_name)?;
        let raw = request.raw_state.unwrap_or_default();
        let answer = if raw.json.is_empty() {
            let summary = "the state is in the form of Terraform before 0.12";
            let hint = "hint: have Terraform 0.12 or newer rewrite it first, with the provider that made it";
            wire::UpgradeResourceStateResponse {
                upgraded_state: None,
                diagnostics: vec![diagnostics::error(summary, hint, Vec::new())],
            }
        } else {
            let object = conform(Value::from_json_bytes(&raw.json))?;
            wire::UpgradeResourceStateResponse {
                upgraded_state: Some(encode(object)),
                diagnostics: Vec::new(),
            }
        };
        Ok(Response::new(answer))
    }

    async fn configure(
        &self,
        request: Request<wire::ConfigureRequest>,
    ) -> Result<Response<wire::ConfigureResponse>, Status> {
        tracing::debug!(terraform = request.into_inner().terraform_version, "configured");
        Ok(Response::new(wire::ConfigureResponse { diagnostics: self.0.configure() }))
    }

    async fn read_resource(
        &self,
        request: Request<wire::ReadResourceRequest>,
    ) -> Result<Response<wire::ReadResourceResponse>, Status> {
        let request = request.into_inner();
        known(&request.type_name)?;
        let ours = Private::read(&request.private);
        let Some(object) = object(request.current_state.as_ref())? else {
            let new_state = Some(encode(None));
            return Ok(Response::new(wire::ReadResourceResponse {
                new_state,
                diagnostics: Vec::new(),
                private: request.private,
            }));
        };
        let left = self.0.read(object, ours).await;
        // What the earlier provider noted stays as long as nothing of ours takes its place.
        let kept = left.private.as_ref().map_or(request.private, Private::bytes);
        Ok(Response::new(wire::ReadResourceResponse {
            new_state: Some(encode(left.object)),
            diagnostics: left.diagnostics,
            private: kept,
        }))
    }

    async fn plan_resource_change(
        &self,
        request: Request<wire::PlanResourceChangeRequest>,
    ) -> Result<Response<wire::PlanResourceChangeResponse>, Status> {
        let request = request.into_inner();
        known(&request.type_name)?;
        let mut answer = wire::PlanResourceChangeResponse {
            planned_state: Some(encode(None)),
            requires_replace: Vec::new(),
            planned_private: request.prior_private.clone(),
            diagnostics: Vec::new(),
        };
        if let (Some(_), Some(config)) =
            (object(request.proposed_new_state.as_ref())?, object(request.config.as_ref())?)
        {
            let prior = object(request.prior_state.as_ref())?;
            let ours = Private::read(&request.prior_private);
            let (plan, found) = self.0.plan(&config, prior.as_ref().map(|prior| (prior, ours.as_ref())));
            answer.planned_state = Some(encode(Some(plan.planned)));
            let causes = plan.replaces.iter().map(|cause| match cause {
                Cause::Own(name) => diagnostics::at(name),
                Cause::InStorage(name) => diagnostics::in_block("storage", name),
            });
            answer.requires_replace = causes.filter_map(diagnostics::path).collect();
            answer.diagnostics = found;
        }
        Ok(Response::new(answer))
    }

    async fn apply_resource_change(
        &self,
        request: Request<wire::ApplyResourceChangeRequest>,
    ) -> Result<Response<wire::ApplyResourceChangeResponse>, Status> {
        let request = request.into_inner();
        known(&request.type_name)?;
        let (prior, planned) =
            (object(request.prior_state.as_ref())?, object(request.planned_state.as_ref())?);
        let ours = Private::read(&request.planned_private);
        let Left { object, private: kept, diagnostics } = self.0.apply(prior, planned, ours).await;
        Ok(Response::new(wire::ApplyResourceChangeResponse {
            new_state: Some(encode(object)),
            private: kept.as_ref().map_or(request.planned_private, Private::bytes),
            diagnostics,
        }))
    }

    async fn import_resource_state(
        &self,
        request: Request<wire::ImportResourceStateRequest>,
    ) -> Result<Response<wire::ImportResourceStateResponse>, Status> {
        let request = request.into_inner();
        known(&request.type_name)?;
        let left = self.0.import(&request.id).await;
        let imported = left.object.map(|object| wire::import_resource_state_response::ImportedResource {
            type_name: request.type_name,
            state: Some(encode(Some(object))),
            private: private(left.private.as_ref()),
        });
        Ok(Response::new(wire::ImportResourceStateResponse {
            imported_resources: imported.into_iter().collect(),
            diagnostics: left.diagnostics,
        }))
    }

    async fn stop(&self, _: Request<wire::StopRequest>) -> Result<Response<wire::StopResponse>, Status> {
        tracing::info!("asked to stop");
        self.0.stop();
        Ok(Response::new(wire::StopResponse { error: String::new() }))
    }
}

/// How Terraform ends us.
#[derive(Debug)]
pub(super) struct Control(pub(super) CancellationToken);

#[tonic::async_trait]
impl control::grpc_controller_server::GrpcController for Control {
    async fn shutdown(&self, _: Request<control::Empty>) -> Result<Response<control::Empty>, Status> {
        self.0.cancel();
        Ok(Response::new(control::Empty {}))
    }
}
