{{/* What the schema cannot say, because it depends on the mode; every message names the value and the remedy. */}}

{{- define "tightfit.checks" -}}
{{- if and (eq .Values.mode "replicated") (not .Values.database.existingSecret) -}}
{{- fail "database.existingSecret is needed in replicated mode: name a Secret with the URL of a PostgreSQL database, or set mode=embedded" -}}
{{- end -}}
{{- if and (eq .Values.mode "replicated") (ne (include "tightfit.artifactStore" .) "s3") -}}
{{- fail "artifacts.store must be s3 in replicated mode, because servers share no folder: give artifacts.s3.url, or set mode=embedded" -}}
{{- end -}}
{{- if eq (include "tightfit.artifactStore" .) "s3" -}}
{{- if not .Values.artifacts.s3.url -}}
{{- fail "artifacts.s3.url is needed when artifacts live in S3: give the URL of the store, or set mode=embedded" -}}
{{- end -}}
{{- end -}}
{{- if and (not (include "tightfit.tlsSecret" .)) (not .Values.auth.allowInsecure) -}}
{{- fail "tls.existingSecret is needed: name a Secret with a certificate, or set tls.certManager.enabled, or auth.allowInsecure where a mesh encrypts" -}}
{{- end -}}
{{- if and (not .Values.auth.required) (not .Values.auth.allowInsecure) -}}
{{- fail "auth.required is false: everybody who reaches the port may do everything; set it, or auth.allowInsecure where a mesh decides who calls" -}}
{{- end -}}
{{- if and .Values.metrics.tls.enabled (not (include "tightfit.tlsSecret" .)) -}}
{{- fail "tls.existingSecret is needed with metrics.tls.enabled: name a Secret with a certificate, or set tls.certManager.enabled" -}}
{{- end -}}
{{- if and .Values.tls.certManager.enabled (not .Values.tls.certManager.issuerName) -}}
{{- fail "tls.certManager.issuerName is needed to ask for a certificate: name an Issuer or ClusterIssuer" -}}
{{- end -}}
{{- if and .Values.auth.oidc.issuer (not .Values.auth.oidc.jwksUrl) (not .Values.auth.oidc.jwksFile) -}}
{{- fail "auth.oidc.jwksUrl is needed with auth.oidc.issuer: give the URL of the provider's keys" -}}
{{- end -}}
{{- if and .Values.ray.enabled (not .Values.ray.auth.existingSecret) -}}
{{- fail "ray.auth.existingSecret is needed with ray.enabled: name a Secret with a random token, for Ray runs any code for who reaches it" -}}
{{- end -}}
{{- if and .Values.ray.enabled (not .Values.ray.address) (not .Values.ray.version) -}}
{{- fail "ray.version is needed to make a RayCluster: give the version of Ray in the image" -}}
{{- end -}}
{{- if and (eq .Values.mode "embedded") (ne .Values.autoscaling.kind "none") -}}
{{- fail "autoscaling.kind must be none in embedded mode, where one server holds the volume: set mode=replicated" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas: lower the one or raise the other" -}}
{{- end -}}
{{- end -}}
