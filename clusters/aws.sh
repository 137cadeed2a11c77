#!/usr/bin/env bash
# Makes the roles of cluster.yaml, once for an account: `clusters/aws.sh BUCKET [FOLDER]`, with the AWS command line and the
# rights to make roles; again, it brings them up to date. Both roles reach the bucket's FOLDER ("runs") alone. The head may
# also start workers, and tag and end instances that carry the cluster's tag: no others of the account.
#
# Of what a command deletes or overwrites in the bucket an older version stays. A lifecycle rule for noncurrent versions
# keeps that from growing for ever; the roles cannot delete versions.
set -euo pipefail
bucket=${1:?is the name of the bucket} folder=${2:-runs}
cluster=$(sed -n 's/^cluster_name: *//p' "$(dirname "${BASH_SOURCE[0]}")/../cluster.yaml")
account=$(aws sts get-caller-identity --query Account --output text)

make_role() { # name, statements
    local trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"Service": "ec2.amazonaws.com"}}]}'
    if ! aws iam get-role --role-name "$1" >/dev/null 2>&1; then
        aws iam create-role --role-name "$1" --assume-role-policy-document "$trust" >/dev/null
    fi
    aws iam put-role-policy --role-name "$1" --policy-name "$1" \
        --policy-document "{\"Version\": \"2012-10-17\", \"Statement\": [$2]}"
    if ! aws iam get-instance-profile --instance-profile-name "$1" >/dev/null 2>&1; then
        aws iam create-instance-profile --instance-profile-name "$1" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
    fi
}

# IfExists: a request for an object has no prefix, and is told that there is none only by who may list the bucket.
store='{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
    "Resource": "arn:aws:s3:::'$bucket/$folder'/*"},
    {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::'$bucket'",
    "Condition": {"StringLikeIfExists": {"s3:prefix": ["'$folder'", "'$folder'/*"]}}}'
ec2="arn:aws:ec2:*:$account" instances="arn:aws:ec2:*:$account:instance/*"
ours='{"StringEquals": {"aws:ResourceTag/ray-cluster-name": "'$cluster'"}}'
launch='{"Effect": "Allow", "Action": "ec2:RunInstances", "Resource": "'$instances'",
    "Condition": {"StringEquals": {"aws:RequestTag/ray-cluster-name": "'$cluster'"}}},
    {"Effect": "Allow", "Action": "ec2:RunInstances", "Resource": ["arn:aws:ec2:*::image/*", "arn:aws:ec2:*::snapshot/*",
    "'$ec2':subnet/*", "'$ec2':security-group/*", "'$ec2':network-interface/*", "'$ec2':volume/*", "'$ec2':key-pair/*",
    "'$ec2':spot-instances-request/*"]},
    {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "'$instances'",
    "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}}},
    {"Effect": "Allow", "Action": ["ec2:CreateTags", "ec2:TerminateInstances"], "Resource": "'$instances'", "Condition": '$ours'},
    {"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"},
    {"Effect": "Allow", "Action": "ssm:GetParameters", "Resource": "arn:aws:ssm:*::parameter/aws/service/*"},
    {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::'$account':role/sgan-worker",
    "Condition": {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}}'
make_role sgan-worker "$store"
make_role sgan-head "$store, $launch"
aws s3api put-bucket-versioning --bucket "$bucket" --versioning-configuration '{"Status": "Enabled"}'
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true # the account may have it
