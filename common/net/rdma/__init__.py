"""The rdma link: frames on the tcp connection, payload by one-sided READ and WRITE of the server."""
