{{/* Names and labels that all resources share. */}}

{{- define "tightfit.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* 40 characters at most, so that what is appended (-headless, -migrate, Ray's own) still fits into 63. */}}
{{- define "tightfit.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "tightfit.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "tightfit.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What chooses the servers' pods, and nothing else of the release. */}}
{{- define "tightfit.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tightfit.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end -}}

{{- define "tightfit.labels" -}}
app.kubernetes.io/name: {{ include "tightfit.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tightfit.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tightfit.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "tightfit.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "tightfit.artifactStore" -}}
{{- .Values.artifacts.store | default (ternary "s3" "folder" (eq .Values.mode "replicated")) -}}
{{- end -}}

{{/* The Secret of the gRPC port's certificate; empty where plain text is served. */}}
{{- define "tightfit.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{- .Values.tls.existingSecret -}}
{{- else if .Values.tls.certManager.enabled -}}
{{- printf "%s-tls" (include "tightfit.fullname" .) -}}
{{- end -}}
{{- end -}}

{{- define "tightfit.s3Port" -}}
{{- if .Values.networkPolicy.s3.port -}}
{{- int .Values.networkPolicy.s3.port -}}
{{- else if regexMatch ":[0-9]+$" (urlParse .Values.artifacts.s3.url).host -}}
{{- regexFind "[0-9]+$" (urlParse .Values.artifacts.s3.url).host -}}
{{- else -}}
{{- ternary 443 80 (hasPrefix "https:" .Values.artifacts.s3.url) -}}
{{- end -}}
{{- end -}}

{{- define "tightfit.rayClusterName" -}}
{{- printf "%s-ray" (include "tightfit.fullname" .) -}}
{{- end -}}

{{- define "tightfit.rayAddress" -}}
{{- .Values.ray.address | default (printf "ray://%s-head-svc.%s.svc:10001" (include "tightfit.rayClusterName" .) .Release.Namespace) -}}
{{- end -}}
