// A notification service extension: iOS runs it for each push with a title and "mutable-content": 1, also when the user
// has closed the app. It shows the image and reports "delivered".
import FirebaseMessaging
import UserNotifications

private let appGroup = "group.com.example.app"  // as in push_store.dart
private let receipts = "push.receipt."  // as in push_store.dart, and so the bound
private let mostReceipts = 500

/// What push_store.dart has kept.
private struct Session: Decodable {
  let url: String
  let key: String
  let user_id: String
  let access_token: String
  let expires_at: Double  // seconds since 1970
}

final class NotificationService: UNNotificationServiceExtension {
  private var contentHandler: ((UNNotificationContent) -> Void)?
  private var content: UNMutableNotificationContent?

  override func didReceive(
    _ request: UNNotificationRequest,
    withContentHandler contentHandler: @escaping (UNNotificationContent) -> Void
  ) {
    let content = (request.content.mutableCopy() as? UNMutableNotificationContent) ?? UNMutableNotificationContent()
    self.contentHandler = contentHandler
    self.content = content
    recordDelivered(pushId: content.userInfo["push_id"] as? String) {
      Messaging.serviceExtension().populateNotificationContent(content, withContentHandler: contentHandler)
    }
  }

  /// iOS gives about 30 seconds.
  override func serviceExtensionTimeWillExpire() {
    if let contentHandler, let content { contentHandler(content) }
  }

  /// Keeps the receipt, sends it if the access token is still good, and then calls `done`. It never refreshes the
  /// session: a refresh token works once, and the app, which would use it second, would be signed out.
  private func recordDelivered(pushId: String?, done: @escaping () -> Void) {
    guard
      let pushId,
      let defaults = UserDefaults(suiteName: appGroup),
      let device = defaults.string(forKey: "push.device"),
      let text = defaults.string(forKey: "push.session"),
      let session = try? JSONDecoder().decode(Session.self, from: Data(text.utf8))
    else { return done() }

    let format = ISO8601DateFormatter()
    format.formatOptions = [.withInternetDateTime, .withFractionalSeconds]
    let at = format.string(from: Date())
    let key = receipts + "\(at).\(pushId).delivered"
    let receipt = [
      "push_id": pushId, "device_token": device, "status": "delivered", "at": at, "user_id": session.user_id,
    ]
    guard let kept = try? JSONEncoder().encode(receipt) else { return done() }
    defaults.set(String(decoding: kept, as: UTF8.self), forKey: key)
    // The app may not be opened for months. Keys sort by time.
    let waiting = defaults.dictionaryRepresentation().keys.filter { $0.hasPrefix(receipts) }.sorted()
    for oldest in waiting.dropLast(mostReceipts) { defaults.removeObject(forKey: oldest) }

    guard
      session.expires_at > Date().timeIntervalSince1970 + 10,
      let url = URL(string: session.url + "/rest/v1/rpc/record_delivery_receipt"),
      let body = try? JSONEncoder().encode([
        "p_push_id": pushId, "p_device_token": device, "p_status": "delivered", "p_at": at,
      ])
    else { return done() }  // the app sends it when it is opened

    var post = URLRequest(url: url, timeoutInterval: 10)
    post.httpMethod = "POST"
    post.httpBody = body
    post.setValue(session.key, forHTTPHeaderField: "apikey")
    post.setValue("Bearer " + session.access_token, forHTTPHeaderField: "Authorization")
    post.setValue("application/json", forHTTPHeaderField: "Content-Type")
    URLSession.shared.dataTask(with: post) { _, response, _ in
      let status = (response as? HTTPURLResponse)?.statusCode ?? 0
      if (200..<300).contains(status) || status == 400 || status == 403 { defaults.removeObject(forKey: key) }
      done()
    }.resume()
  }
}
