import io.unitycatalog.server.UnityCatalogServer;
import io.unitycatalog.server.service.credential.CloudCredentialVendor;
import io.unitycatalog.server.service.credential.aws.AwsCredentialVendor;
import io.unitycatalog.server.service.credential.azure.AzureCredentialVendor;
import io.unitycatalog.server.service.credential.gcp.GcpCredentialVendor;
import io.unitycatalog.server.utils.ServerProperties;
import java.net.URI;
import software.amazon.awssdk.services.sts.StsClient;

/**
 * The server as its builder makes it. Its own main class opens a second port, on every address of the machine, and asks
 * no STS but Amazon's. Arguments: the port, and the address of STS.
 */
class UnityServer {
  public static void main(String[] arguments) throws Exception {
    ServerProperties properties = new ServerProperties(UnityCatalogServer.SERVER_PROPERTIES_FILE);
    URI sts = URI.create(arguments[1]);
    CloudCredentialVendor vendor =
        new CloudCredentialVendor(
            new AwsCredentialVendor(properties, () -> StsClient.builder().endpointOverride(sts)),
            new AzureCredentialVendor(properties),
            new GcpCredentialVendor(properties));
    UnityCatalogServer.builder()
        .port(Integer.parseInt(arguments[0]))
        .serverProperties(properties)
        .credentialOperations(vendor)
        .build()
        .start();
    while (System.in.read() >= 0) {} // the pipe closes when the test process ends, however it ends
    System.exit(0);
  }
}
