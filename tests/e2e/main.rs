//! The whole cloud: AWS CLI, boto3, ssh and curl against real instances.
