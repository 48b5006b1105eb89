{{/* The pod of a server: the same in a Deployment (replicated) and in a StatefulSet (embedded). */}}

{{- define "tightfit.podTemplate" -}}
metadata:
  labels:
    {{- include "tightfit.labels" . | nindent 4 }}
    app.kubernetes.io/component: server
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # Settings are read at the start only, so a change of them replaces the pod.
    checksum/config: {{ include (print .Template.BasePath "/configmap.yaml") . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "tightfit.serviceAccountName" . }}
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: {{ add (int .Values.preStopSeconds) (int .Values.settings.drainSeconds) (int .Values.terminationMarginSeconds) }}
  {{- include "tightfit.podCommon" . | nindent 2 }}
  containers:
    - name: tightfit
      {{- include "tightfit.containerCommon" . | nindent 6 }}
      args: [serve]
      envFrom:
        - configMapRef:
            name: {{ include "tightfit.fullname" . }}
      {{- with include "tightfit.secretEnv" . }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      ports:
        - name: grpc
          containerPort: {{ int .Values.service.grpcPort }}
        - name: metrics
          containerPort: {{ int .Values.service.metricsPort }}
        - name: health
          containerPort: {{ int .Values.service.healthPort }}
      {{- with int .Values.preStopSeconds }}
      # Kubernetes takes a pod out of the Services while it already asks it to stop; new connections come meanwhile.
      lifecycle:
        preStop:
          exec:
            command: [sleep, {{ . | quote }}]
      {{- end }}
      startupProbe:
        grpc:
          port: {{ int .Values.service.healthPort }}
        periodSeconds: 5
        failureThreshold: {{ max 1 (div (int .Values.probes.startupSeconds) 5) }}
      readinessProbe:
        grpc:
          port: {{ int .Values.service.healthPort }}
        periodSeconds: 10
        timeoutSeconds: 5
      livenessProbe:
        grpc:
          port: {{ int .Values.service.healthPort }}
          # whether the process answers; the other probes ask whether database and store do, too
          service: liveness
        periodSeconds: 20
        timeoutSeconds: 10
        failureThreshold: 6
      resources:
        {{- toYaml .Values.resources | nindent 8 }}
      volumeMounts:
        - name: data
          mountPath: /var/lib/tightfit
        - name: tmp
          mountPath: /tmp
        {{- include "tightfit.secretMounts" . | nindent 8 }}
        {{- with .Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  {{- with .Values.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - topologyKey: {{ .topologyKey }}
      maxSkew: {{ int .maxSkew }}
      whenUnsatisfiable: {{ .whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "tightfit.selectorLabels" $ | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- include "tightfit.placement" . | nindent 2 }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: {{ .Values.scratch.tmpSize }}
    {{- if eq .Values.mode "replicated" }}
    - name: data
      {{- if .Values.scratch.storageClass }}
      ephemeral:
        volumeClaimTemplate:
          spec:
            accessModes: [ReadWriteOnce]
            storageClassName: {{ .Values.scratch.storageClass }}
            resources:
              requests:
                storage: {{ .Values.scratch.size }}
      {{- else }}
      emptyDir:
        sizeLimit: {{ .Values.scratch.size }}
      {{- end }}
    {{- else if not .Values.persistence.enabled }}
    - name: data
      emptyDir: {}
    {{- else if .Values.persistence.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ .Values.persistence.existingClaim }}
    {{- end }}
    {{- include "tightfit.secretVolumes" . | nindent 4 }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Of every pod of the chart. */}}
{{- define "tightfit.podCommon" -}}
# Service links would add TIGHTFIT_* variables of Kubernetes' own to the settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Of every container of the chart. */}}
{{- define "tightfit.containerCommon" -}}
image: {{ include "tightfit.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- end -}}

{{/* Where the chart's own pods may run. */}}
{{- define "tightfit.placement" -}}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* What the servers read from Secrets, by reference. */}}
{{- define "tightfit.secretEnv" -}}
{{- include "tightfit.databaseEnv" . }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Secrets and the policy as folders of files, whole and not by subPath: only so they follow their changes. */}}
{{- define "tightfit.secretMounts" -}}
{{- if include "tightfit.s3Secret" . }}
- {name: s3, mountPath: /etc/tightfit/s3, readOnly: true}
{{- end }}
{{- if include "tightfit.tlsSecret" . }}
- {name: tls, mountPath: /etc/tightfit/tls, readOnly: true}
{{- end }}
{{- if .Values.auth.policy }}
- {name: access, mountPath: /etc/tightfit/access, readOnly: true}
{{- end }}
{{- if .Values.ray.enabled }}
- {name: ray, mountPath: /etc/tightfit/ray, readOnly: true}
{{- end }}
{{- if .Values.provenance.existingSecret }}
- {name: provenance, mountPath: /etc/tightfit/provenance, readOnly: true}
{{- end }}
{{- end -}}

{{- define "tightfit.secretVolumes" -}}
{{- with include "tightfit.s3Secret" . }}
- name: s3
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- with include "tightfit.tlsSecret" . }}
- name: tls
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if .Values.auth.policy }}
- name: access
  configMap:
    name: {{ include "tightfit.fullname" . }}-access
{{- end }}
{{- if .Values.ray.enabled }}
- name: ray
  secret:
    secretName: {{ .Values.ray.auth.existingSecret }}
    defaultMode: 0440
{{- end }}
{{- with .Values.provenance.existingSecret }}
- name: provenance
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{- define "tightfit.s3Secret" -}}
{{- if eq (include "tightfit.artifactStore" .) "s3" -}}
{{- .Values.artifacts.s3.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "tightfit.databaseEnv" -}}
{{- with .Values.database.existingSecret }}
- name: TIGHTFIT_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: {{ $.Values.database.urlKey }}
{{- end }}
{{- end -}}

{{/* Always set on every node: left out, Ray would decide by a file in the home folder. */}}
{{- define "tightfit.rayAuthEnv" -}}
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ .Values.ray.auth.existingSecret }}
      key: {{ .Values.ray.auth.tokenKey }}
{{- end -}}
