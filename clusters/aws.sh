#!/usr/bin/env bash
# Makes the roles of cluster.yaml, once for an account: `clusters/aws.sh BUCKET`, with the AWS command line and the rights
# to make roles. Workers may read and write the bucket, the head also start, tag and end workers and read image ids.
set -euo pipefail
bucket=${1:?is the name of the bucket}
account=$(aws sts get-caller-identity --query Account --output text)

make_role() { # name, statements
    local trust='{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole",
        "Principal": {"Service": "ec2.amazonaws.com"}}]}'
    aws iam create-role --role-name "$1" --assume-role-policy-document "$trust" >/dev/null
    aws iam put-role-policy --role-name "$1" --policy-name "$1" \
        --policy-document "{\"Version\": \"2012-10-17\", \"Statement\": [$2]}"
    aws iam create-instance-profile --instance-profile-name "$1" >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$1" --role-name "$1"
}

store='{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
    "s3:AbortMultipartUpload"], "Resource": ["arn:aws:s3:::'$bucket'", "arn:aws:s3:::'$bucket'/*"]}'
launch='{"Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:TerminateInstances", "ec2:CreateTags", "ec2:Describe*",
    "ssm:GetParameters"], "Resource": "*"},
    {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::'$account':role/sgan-worker"}'
make_role sgan-worker "$store"
make_role sgan-head "$store, $launch"
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true # the account may have it
